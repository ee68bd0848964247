"""JSON files as records: an object a line, an array of objects, or objects printed over several lines.

An array may be of any length: it is read a piece at a time. Damage between two lines of JSONL costs a line; inside an
array or an object of several lines nothing says where the next one begins, so the file is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from producer.errors import LineProblem, UsageError
from producer.prompts.readers.record import MAX_LINE_BYTES, MAX_RAW_BYTES, FileFacts, Record, parsed, unique_fields
from producer.prompts.readers.text_lines import line_end, open_text, shown, text_lines, undecoded

PIECE = 2**16  # characters read at once
SPACE = " \t\r\n"


def read_json(path: Path, facts: FileFacts) -> Iterator[Record]:
    """The objects of the file, whichever way they are laid out."""
    if _spans_lines(path, facts.encoding):
        yield from _values(path, facts.encoding)
        return
    for line in text_lines(path, facts.encoding):
        text = line.raw.strip()
        yield line if line.problem is not None else parsed(line.number, text, partial(_object, text))


def _object(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text, object_pairs_hook=unique_fields)
    except json.JSONDecodeError as error:
        if text[error.pos :].strip() == "," and error.msg == "Extra data":
            raise LineProblem("", "has a comma behind its object; leave it out") from error
        raise LineProblem("", f"is not JSON: {error.msg} at column {error.colno}; one object per line") from error
    except RecursionError as error:
        raise LineProblem("", "is nested too deeply") from error
    except ValueError as error:
        raise LineProblem("", f"is not usable JSON: {error}") from error
    return _checked_object(record, text)


def _checked_object(value: Any, text: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LineProblem("", f"must be a JSON object, got {' '.join(text[:200].split())[:60]}")
    return value


def _spans_lines(path: Path, encoding: str) -> bool:
    """Whether the file is an array or an object of several lines, by its first two lines that are not blank."""
    lines = list(islice(text_lines(path, encoding), 2))
    if not lines:
        return False
    text, following = lines[0].raw.strip(), lines[1].raw.strip() if len(lines) > 1 else ""
    if text[:1] == "[" and text[1:].lstrip()[:1] in ("", "{", "]"):
        # A line of JSONL may be a list too, which is an error of that line.
        return len(lines) == 1 or not _is_json(text)
    if text[-1:] == "," and _is_json(text[:-1]):
        return False  # a line of JSONL with a comma behind it
    return text[:1] == "{" and text[-1:] in "{[,:" and following[:1] in ('"', "}", "]", "[", "{") and not (
        _is_json(following)
    )  # fmt: skip


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@dataclass
class _Text:
    """The part of a file that is not yet parsed, and the number of its first line."""

    file: TextIO
    path: Path
    newline: str
    text: str = ""
    position: int = 0
    number: int = 1

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in SPACE:
                self.number += self.text[self.position] == self.newline
                self.position += 1
            if self.position < len(self.text) or not self.read():
                return self.text[self.position : self.position + 1]

    def read(self) -> bool:
        """Doubles the unread part, so that a long value is tried a few times only; False at the end."""
        unread = self.text[self.position :]
        more = self.file.read(max(PIECE, len(unread)))
        self.text, self.position = unread + more, 0
        return bool(more)

    def value(self) -> tuple[Any, str]:
        """The next value and its text. Raises `UsageError` where there is none."""
        while True:
            begin = self.position
            try:
                value, end = _DECODER.raw_decode(self.text, begin)
                if end < len(self.text) or not self.read():
                    break
            except json.JSONDecodeError as error:
                if len(self.text) - self.position > MAX_LINE_BYTES or not self.read():
                    num_lines = error.doc.count(self.newline, begin, error.pos)
                    raise self.fault(f"{error.msg} at column {error.colno}", num_lines) from error
            except LineProblem as problem:
                raise UsageError(f"{self.path}:{self.number}: {problem}") from problem
            except RecursionError as error:
                raise UsageError(f"{self.path}:{self.number}: is nested too deeply") from error
            except ValueError as error:
                raise self.fault(str(error)) from error
        begin, self.position = self.position, end
        return value, self.text[begin:end]

    def fault(self, problem: str, num_lines: int = 0) -> UsageError:
        return UsageError(
            f"{self.path}:{self.number + num_lines}: is not JSON: {problem}; nothing was read behind it, fix the file "
            "or write one object per line"
        )


_DECODER = json.JSONDecoder(object_pairs_hook=unique_fields)


def _values(path: Path, encoding: str) -> Iterator[Record]:
    """The elements of an array, or the objects of a file that parts them by white space."""
    newline = line_end(path, encoding)
    with open_text(path, encoding, newline) as file:
        text = _Text(file, path, newline)
        is_array = text.peek() == "["
        text.position += is_array
        is_first, number, place = True, 0, 0
        while (character := text.peek()) not in ("", "]"):
            if is_array and not is_first:
                if character != ",":
                    raise text.fault(f"',' expected between two elements, got {character!r}")
                text.position += 1
                if text.peek() == "]":
                    raise text.fault("a comma behind the last element")
            number, place = text.number, place + 1 if text.number == number else 1
            yield _element(text, encoding, place)
            is_first = False
        _check_end(text, is_array, character)


def _element(text: _Text, encoding: str, place: int) -> Record:
    number = text.number
    value, raw = text.value()
    num_lines = raw.count(text.newline) + 1
    text.number += num_lines - 1
    if problem := undecoded(raw, encoding):
        return Record(number, shown(raw[:MAX_RAW_BYTES]), {}, problem, num_lines, place=place)
    return parsed(number, shown(raw), lambda: _checked_object(value, raw), num_lines, place)


def _check_end(text: _Text, is_array: bool, character: str) -> None:
    if is_array != (character == "]"):
        raise text.fault("the array is not closed" if is_array else "']' without '['")
    if is_array:
        text.position += 1
        if rest := text.peek():
            raise text.fault(f"text after the array, {rest!r}")
