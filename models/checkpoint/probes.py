"""Texts on which a tokenizer is tried before any prompt: what it refuses, and what is a fault of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def ids_unless_refused(encode: Callable[[str], Sequence[int]], probe: str) -> list[int] | None:
    """The token ids of a probe; None where the tokenizer refuses it, as one without an unknown token does.

    A prompt that it refuses fails alone. A panic of its library is a fault, and not an `Exception`.
    """
    try:
        return list(encode(probe))
    except Exception:
        return None
