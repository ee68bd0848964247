"""A record as a prompt with its parameters, or the first thing that is wrong with it. Knows no grids."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from dataclasses import field as of_default
from typing import Any

from models.chat import ChatInputs, is_continued
from producer.errors import LineProblem
from producer.prompts.conversations import ChatOptions, chat_inputs, is_message_list, parsed_messages, shorten
from producer.prompts.openai_lines import CHAT_URL, endpoint_of
from producer.prompts.readers.record import CHAT_FIELDS, PARAMETER_FIELDS, check_nesting, whole_number
from producer.prompts.records import Record

MAX_CUSTOM_ID = 512

#: The text of a list of messages, in JSON or as Python and numpy print it.
LISTED_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']\s*:""")

#: Parts of a request, which batch lines of Anthropic, Gemini, Mistral and Bedrock have inside of an object.
REQUEST_PARTS = ("messages", "prompt", "contents", "inputText")


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
    chat: ChatInputs = ChatInputs()
    remarks: dict[str, str] = of_default(default_factory=dict)  # warnings, by field


def prompt_line(record: Record, options: ChatOptions = ChatOptions()) -> PromptLine:
    """The record as a prompt. Raises `LineProblem`."""
    if record.problem is not None:
        raise record.problem
    fields = {name: value for name, value in record.fields.items() if value or name not in CHAT_FIELDS}
    _check_strings(fields | {record.column or name: value for name, value in record.named.items()})
    params = {name: whole_number(name, fields.pop(name)) for name in PARAMETER_FIELDS & fields.keys()}
    prompt, given = _prompt_or_messages(record.named or fields, record.column)
    messages = options.messages(prompt, given)
    chat = ChatInputs() if messages is None else chat_inputs(fields, options)
    if messages is not None:
        _check_parsed({"messages": messages, **dict(chat)})
    return PromptLine(
        custom_id=_custom_id(whole_number("custom_id", fields.pop("custom_id", None)), record.name),
        prompt=prompt if messages is None else None,
        messages=messages,
        params=params,
        priority=_priority(whole_number("priority", fields.pop("priority", None))),
        metadata=fields,
        default_strategy="greedy" if endpoint_of(fields.get("url")) is None else "sample",  # as OpenAI does
        chat=chat,
        remarks=_remarks(fields, prompt if messages is None else None, messages),
    )


def _prompt_or_messages(fields: dict[str, Any], column: str | None) -> tuple[str | None, list[dict[str, Any]] | None]:
    """The prompt or the conversation, taken out of the fields. Raises `LineProblem`, with the option's column."""
    prompt, messages = fields.pop("prompt", None), fields.pop("messages", None)
    if (prompt is None) == (messages is None):
        more = ", not both; name one with --prompt-column or --messages-column" if prompt is not None else _has(fields)
        raise LineProblem("", f"needs either prompt or messages{more}")
    if is_message_list(prompt):
        return None, parsed_messages(column or "prompt", prompt)
    if prompt is None:
        return None, parsed_messages(column or "messages", messages)
    _check_text(column or "prompt", prompt)
    return prompt, None


def _has(fields: dict[str, Any]) -> str:
    """The other fields of a line without a prompt, one of which may be meant."""
    if not fields:
        return ""
    for name, value in fields.items():
        if is_message_list(value) and {"prompt", "messages", "custom_id", "row"} & value[0].keys():
            return f"; {name} is a list of {len(value):,} records: write each as a line of its own"
        if isinstance(value, dict) and (inner := next((each for each in REQUEST_PARTS if each in value), None)):
            more = f', or add "url": "{CHAT_URL}"' if name == "body" else ""
            return f"; {name} has {inner}: write the fields of {name} into the line itself, under our names{more}"
    some = ", ".join(list(fields)[:8]) + (", …" if len(fields) > 8 else "")
    return f"; it has {some}: name one with --prompt-column or --messages-column, or give a --template"


def _remarks(metadata: dict[str, Any], prompt: str | None, messages: list[dict[str, Any]] | None) -> dict[str, str]:
    """Warnings about a line that may mean something else than its writer thinks."""
    unseen = [name for name in CHAT_FIELDS & metadata.keys() if not isinstance(metadata[name], str)]
    remarks = dict.fromkeys(unseen, "is kept as metadata: the model sees it in chats only")
    if prompt is not None and LISTED_MESSAGES.match(prompt):
        remarks["prompt"] = "looks like a list of messages, and is taken as text; --messages-column makes a chat of it"
    if messages is not None and is_continued(messages):
        remarks["messages"] = "end with the assistant, whose message the answer continues"
    return remarks


def _check_parsed(fields: dict[str, Any]) -> None:
    """The same checks for what an option gives, or a field as the text of JSON. Raises `LineProblem`."""
    check_nesting(fields)
    _check_strings(fields, way_out="remove it")


def _check_strings(fields: dict[str, Any], *, way_out: str = "remove it, or give --replace-nul") -> None:
    """Raises `LineProblem` for strings and numbers that JSON allows and the databases cannot store."""
    for field, value in fields.items():
        text = field + _joined(value, field if field not in PARAMETER_FIELDS else None)
        if "\0" in text:
            raise LineProblem(field, f"has a NUL character (\\u0000), which PostgreSQL cannot store; {way_out}")
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
        raise LineProblem(field, f"must be a string, got {shorten(value)}")
    if not value:
        raise LineProblem(field, "is empty; give at least one character")


def _custom_id(value: Any, name: str) -> str:
    if value is None:
        return f"line-{name}"
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # tables often number their rows
    if isinstance(value, float) and value.is_integer():
        raise LineProblem("custom_id", f"may be rounded ({value}); write whole numbers as integers or as texts")
    _check_text("custom_id", value)
    if len(value) > MAX_CUSTOM_ID:
        raise LineProblem("custom_id", f"must have at most {MAX_CUSTOM_ID} characters, got {len(value)}")
    return str(value)


def _priority(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 9:
        raise LineProblem("priority", f"must be a whole number from 0 to 9 (9 goes first), got {shorten(value)}")
    return value
