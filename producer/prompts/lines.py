"""A record as a prompt with its parameters, or the first thing that is wrong with it. Knows no grids."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from producer.errors import LineProblem
from producer.prompts.openai_lines import endpoint_of
from producer.prompts.readers.record import PARAMETER_FIELDS
from producer.prompts.records import Record

ROLES = ("system", "user", "assistant", "tool", "developer")
MAX_CUSTOM_ID = 512


@dataclass(frozen=True)
class PromptLine:
    """One valid line: a prompt or a conversation, and the parameters the line sets."""

    custom_id: str
    prompt: str | None
    messages: list[dict[str, Any]] | None
    params: dict[str, Any]  # not validated: the grid's are added first
    priority: int | None
    metadata: dict[str, Any]
    default_strategy: str = "greedy"  # for a line and a command that name none


def prompt_line(record: Record) -> PromptLine:
    """The record as a prompt. Raises `LineProblem`."""
    if record.problem is not None:
        raise record.problem
    fields = dict(record.fields)
    _check_strings(fields)
    params = {name: fields.pop(name) for name in PARAMETER_FIELDS & fields.keys()}
    prompt, messages = fields.pop("prompt", None), fields.pop("messages", None)
    if (prompt is None) == (messages is None):
        raise LineProblem("", "needs either prompt or messages" + (", not both" if prompt is not None else ""))
    if prompt is not None:
        _check_text("prompt", prompt)
    else:
        _check_messages(messages)
    return PromptLine(
        custom_id=_custom_id(fields.pop("custom_id", None), record.number),
        prompt=prompt,
        messages=messages,
        params=params,
        priority=_priority(fields.pop("priority", None)),
        metadata=fields,
        default_strategy="sample"
        if endpoint_of(fields.get("url")) is not None
        else "greedy",  # OpenAI's default is to sample
    )


def _check_strings(fields: dict[str, Any]) -> None:
    """Raises `LineProblem` for strings and numbers that JSON allows and the databases cannot store."""
    for field, value in fields.items():
        text = field + _joined(value, field if field not in PARAMETER_FIELDS else None)
        if "\0" in text:
            raise LineProblem(
                field, "has a NUL character (\\u0000), which PostgreSQL cannot store; remove it, or give --replace-nul"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            # The CSV reader turns a byte that is not UTF-8 into a surrogate from U+DC80 on.
            is_byte = 0xDC80 <= ord(text[error.start]) <= 0xDCFF
            problem = "is not UTF-8; save the file as UTF-8, or name its encoding with --encoding" if is_byte else (
                "has a lone surrogate (\\ud800 … \\udfff); write the character whole"
            )  # fmt: skip
            raise LineProblem(field, problem) from error


def _joined(value: Any, metadata_field: str | None) -> str:
    """All strings inside a JSON value, joined. Raises `LineProblem` for a number in metadata that JSON lacks."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "".join(key + _joined(inner, metadata_field) for key, inner in value.items())
    if isinstance(value, list):
        return "".join(_joined(inner, metadata_field) for inner in value)
    if isinstance(value, float) and metadata_field is not None and not math.isfinite(value):
        raise LineProblem(metadata_field, f"must be a finite number, got {value}")
    return ""


def _check_text(field: str, value: Any) -> None:
    if not isinstance(value, str):
        raise LineProblem(field, f"must be a string, got {_shorten(value)}")
    if not value:
        raise LineProblem(field, "is empty; give at least one character")


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise LineProblem("messages", f"must be a list of at least one message, got {_shorten(messages)}")
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        if not isinstance(message, dict):
            raise LineProblem(field, f"must be an object with role and content, got {_shorten(message)}")
        if message.get("role") not in ROLES:
            raise LineProblem(
                f"{field}.role", f"must be one of {', '.join(ROLES)}, got {_shorten(message.get('role'))}"
            )
        if not isinstance(message.get("content"), str):
            raise LineProblem(f"{field}.content", f"must be a string, got {_shorten(message.get('content'))}")


def _custom_id(value: Any, number: int) -> str:
    if value is None:
        return f"line-{number}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # tables often number their rows
    _check_text("custom_id", value)
    if len(value) > MAX_CUSTOM_ID:
        raise LineProblem("custom_id", f"must have at most {MAX_CUSTOM_ID} characters, got {len(value)}")
    return str(value)


def _priority(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 9:
        raise LineProblem("priority", f"must be a whole number from 0 to 9 (9 goes first), got {_shorten(value)}")
    return value


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
