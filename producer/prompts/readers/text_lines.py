"""Text files line by line, in the encoding that the command names. Knows neither JSON nor CSV."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO

from producer.errors import LineProblem, UsageError
from producer.prompts.files import open_file
from producer.prompts.readers.record import MAX_LINE_BYTES, MAX_RAW_BYTES, FileFacts, Record

SNIFFED_BYTES = 2**16

MARK = "\ufeff"

#: A byte that the encoding does not have, as `surrogateescape` decodes it.
UNDECODED = re.compile("[\udc80-\udcff]")

TOO_LONG = f"is longer than {MAX_LINE_BYTES // 2**20} MiB; split the prompt"


def read_text(path: Path, facts: FileFacts) -> Iterator[Record]:
    """A prompt a line."""
    for line in text_lines(path, facts.encoding):
        yield line if line.problem is not None else Record(line.number, line.raw, {"prompt": line.raw})


def text_lines(path: Path, encoding: str) -> Iterator[Record]:
    """Every line that is not blank, without its line end; its fields are not parsed yet."""
    newline = line_end(path, encoding)
    is_simple = is_utf8(encoding) and newline == "\n"
    lines = _utf8_lines(path) if is_simple else _decoded_lines(path, encoding, newline)
    for line in lines:
        if line.problem is not None or line.raw.strip():
            yield line


def checked_encoding(name: str) -> str:
    """The encoding's name. Raises `UsageError` for one that Python does not know."""
    try:
        "".encode(name)
        return codecs.lookup(name).name
    except (LookupError, UnicodeError, ValueError) as error:
        raise UsageError(f"--encoding must name an encoding, such as cp1252 or utf-16, got {name!r}") from error


def is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def line_end(path: Path, encoding: str) -> str:
    """The line end: carriage returns in a file that has them alone, as old Macs and Excel for Mac write."""
    has_returns = False
    with open_text(path, encoding, "") as file:
        while piece := file.read(SNIFFED_BYTES):
            if "\n" in piece:
                return "\n"
            has_returns = has_returns or "\r" in piece
            if not has_returns:
                return "\n"  # a first line of such a length
    return "\r" if has_returns else "\n"


@contextmanager
def open_text(path: Path, encoding: str, newline: str = "\n") -> Iterator[TextIO]:
    """The file's text; a byte that is not of the encoding becomes a lone surrogate."""
    with open_file(path) as file:
        name = "utf-8-sig" if is_utf8(encoding) else encoding
        _skip_mark(file, name)
        try:
            yield io.TextIOWrapper(file, encoding=name, errors="surrogateescape", newline=newline)
        except UnicodeError as error:
            raise UsageError(f"cannot read {path}: it is not {encoding} ({error})") from error


def _skip_mark(file: IO[bytes], encoding: str) -> None:
    """Reads over the byte order mark of an encoding whose decoder leaves it in the text, such as utf-16-le."""
    try:
        mark = MARK.encode(encoding)
    except UnicodeError:
        return
    if encoding != "utf-8-sig" and file.peek(len(mark))[: len(mark)] == mark:  # type: ignore[attr-defined]
        file.read(len(mark))


def shown(text: str) -> str:
    """The text with U+FFFD for bytes that could not be decoded."""
    return UNDECODED.sub("\ufffd", text)


def _decoded_lines(path: Path, encoding: str, newline: str) -> Iterator[Record]:
    number = 0
    with open_text(path, encoding, newline) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            is_long = len(line) > MAX_LINE_BYTES
            problem = LineProblem("", TOO_LONG) if is_long else undecoded(line, encoding)
            text = shown(line[:MAX_RAW_BYTES] if problem else line).rstrip("\r\n")
            yield Record(number, text.removeprefix(MARK), {}, problem)
            while len(line) > MAX_LINE_BYTES and not line.endswith(newline):
                line = file.readline(MAX_LINE_BYTES + 1)


def undecoded(text: str, encoding: str) -> LineProblem | None:
    """The problem of text with a byte that is not of the encoding."""
    if not is_utf8(encoding) and (match := UNDECODED.search(text)):
        byte = ord(match[0]) - 0xDC00
        return LineProblem("", f"is not {encoding} (byte {byte:#x}); name the file's encoding with --encoding")
    return None


def _utf8_lines(path: Path) -> Iterator[Record]:
    for number, raw in _raw_lines(path):
        try:
            yield Record(number, _decode(raw).rstrip("\r\n"), {})
        except LineProblem as problem:
            yield Record(number, raw[:MAX_RAW_BYTES].decode("utf-8", "replace"), {}, problem)


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers and lines; of a line longer than `MAX_LINE_BYTES`, its beginning."""
    number = 0
    with open_file(path) as file:
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            yield number, raw
            while len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
                raw = file.readline(MAX_LINE_BYTES + 1)


def _decode(raw: bytes) -> str:
    """The line's text; files that are put together have a byte order mark in the middle."""
    if len(raw) > MAX_LINE_BYTES:
        raise LineProblem("", TOO_LONG)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LineProblem(
            "", f"is not UTF-8 (byte {error.start + 1}); save the file as UTF-8, or name its encoding with --encoding"
        ) from error
