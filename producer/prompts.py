"""Reads a prompt file: a line of native JSONL -> a `PromptLine` or the errors of that line.

Knows nothing of grids or of the database; lines are read one at a time, so a file may be of any length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from models.params import GenerationParams
from producer.errors import UsageError

PARAMETER_FIELDS = frozenset(GenerationParams.model_fields)
OWN_FIELDS = frozenset({"custom_id", "prompt", "messages", "priority"})
ROLES = ("system", "user", "assistant", "tool", "developer")
MAX_LINE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class PromptLine:
    """One valid line: what to decode, and the parameters it sets itself (not validated yet)."""

    number: int
    custom_id: str
    prompt: str | None
    messages: list[dict[str, Any]] | None
    params: dict[str, Any]
    priority: int | None
    metadata: dict[str, Any]


@dataclass(frozen=True)
class LineError:
    """What is wrong with a line; `field` is empty where the line as a whole is."""

    number: int
    field: str
    problem: str

    def __str__(self) -> str:
        return f"{self.field} {self.problem}" if self.field else self.problem


class InvalidLine(Exception):
    """Raised inside this module for the first error of a line."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field, self.problem = field, problem


def read_prompts(path: Path) -> Iterator[PromptLine | LineError]:
    """Every line that is not blank, in order. Raises `UsageError` where the file cannot be read."""
    number = 0
    try:
        with path.open("rb") as file:
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                try:
                    if (line := _parse(raw, number)) is not None:
                        yield line
                except InvalidLine as error:
                    while not raw.endswith(b"\n") and (raw := file.readline(MAX_LINE_BYTES)):
                        pass  # the rest of a line that is too long
                    yield LineError(number, error.field, error.problem)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def misspelt_parameter(field: str) -> str | None:
    """The parameter that a metadata field's name looks like a misspelling of, if any."""
    matches = get_close_matches(field.lower(), PARAMETER_FIELDS | OWN_FIELDS, n=1, cutoff=0.8)
    return matches[0] if matches else None


def _parse(raw: bytes, number: int) -> PromptLine | None:
    if len(raw) > MAX_LINE_BYTES:
        raise InvalidLine("", f"is longer than {MAX_LINE_BYTES // 2**20} MiB; split the prompt")
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise InvalidLine("", f"is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from error
    if not text:
        return None
    record = _load_object(text)
    params = {name: record.pop(name) for name in PARAMETER_FIELDS & record.keys()}
    prompt, messages = record.pop("prompt", None), record.pop("messages", None)
    if (prompt is None) == (messages is None):
        raise InvalidLine("", "needs either prompt or messages" + (", not both" if prompt is not None else ""))
    if prompt is not None:
        _check_text("prompt", prompt)
    else:
        _check_messages(messages)
    return PromptLine(
        number=number,
        custom_id=_custom_id(record.pop("custom_id", None), number),
        prompt=prompt,
        messages=messages,
        params=params,
        priority=_priority(record.pop("priority", None)),
        metadata=record,
    )


def _load_object(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidLine("", f"is not JSON: {error.msg} at column {error.colno}; one object per line") from error
    except RecursionError as error:
        raise InvalidLine("", "is nested too deeply") from error
    if not isinstance(record, dict):
        raise InvalidLine("", f"must be a JSON object, got {_shorten(record)}")
    try:
        # Covers every string of the line, names included.
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidLine("", "has a lone surrogate (\\ud800 … \\udfff); write the character whole") from error
    if "\\u0000" in text and "\0" in repr_strings(record):
        raise InvalidLine("", "has a NUL character (\\u0000), which PostgreSQL cannot store; remove it")
    return record


def repr_strings(value: Any) -> str:
    """All strings inside a JSON value, joined."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "".join(key + repr_strings(inner) for key, inner in value.items())
    if isinstance(value, list):
        return "".join(map(repr_strings, value))
    return ""


def _check_text(field: str, value: Any) -> None:
    if not isinstance(value, str):
        raise InvalidLine(field, f"must be a string, got {_shorten(value)}")
    if not value:
        raise InvalidLine(field, "is empty; give at least one character")


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise InvalidLine("messages", f"must be a list of at least one message, got {_shorten(messages)}")
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        if not isinstance(message, dict):
            raise InvalidLine(field, f"must be an object with role and content, got {_shorten(message)}")
        if message.get("role") not in ROLES:
            raise InvalidLine(
                f"{field}.role", f"must be one of {', '.join(ROLES)}, got {_shorten(message.get('role'))}"
            )
        if not isinstance(message.get("content"), str):
            raise InvalidLine(f"{field}.content", f"must be a string, got {_shorten(message.get('content'))}")


def _custom_id(value: Any, number: int) -> str:
    if value is None:
        return f"line-{number}"
    _check_text("custom_id", value)
    return str(value)


def _priority(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 9:
        raise InvalidLine("priority", f"must be a whole number from 0 to 9 (9 goes first), got {_shorten(value)}")
    return value


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
