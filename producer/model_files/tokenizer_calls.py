"""Calls of the tokenizers library: its errors and panics become one sentence, and a panic prints nothing itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from models.checkpoint.small_files import is_library_error, one_line


class TokenizerFailed(Exception):
    """The library could not do what was asked; the message is its own, in one line."""


@contextmanager
def tokenizer_call() -> Iterator[None]:
    """Raises `TokenizerFailed` for whatever the library raises inside."""
    try:
        with _silenced_stderr():
            yield
    except BaseException as error:
        if not is_library_error(error):
            raise
        raise TokenizerFailed(one_line(error)) from error


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """A panic writes a trace of Rust's to the descriptor, past every exception handler."""
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
