"""Numbers computed of one answer's text, and the identity of a prompt or text. Knows no database."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from typing import Any

ASKS_FOR_JSON = re.compile(r"\bjson\b", re.IGNORECASE)

#: Characters of one text that a page holds; a longer one is cut, and says so.
MAX_TEXT = 20_000


def repetition(text: str) -> float:
    """The share of word pairs that occurred before; 0 for a text without repetition."""
    words = text.split()
    if len(set(words)) == len(words):  # as in many short texts
        return 0.0
    return 1 - len(set(pairwise(words))) / (len(words) - 1)


def is_json(text: str) -> bool:
    """Whether a text is one JSON value."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> None:
    """NaN and Infinity are Python's alone."""
    raise ValueError(constant)


def asked(row: dict[str, Any]) -> str | list[dict[str, Any]]:
    """The prompt of a row: its text, or the messages of its chat."""
    prompt: str | list[dict[str, Any]] = row["messages"] if row["prompt"] is None else row["prompt"]
    return prompt


def asks_for_json(prompt: str | list[dict[str, Any]]) -> bool:
    """Whether a prompt speaks of JSON, so that its answers are expected to be some."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
    return "json" in text.casefold() and bool(ASKS_FOR_JSON.search(text))  # which alone takes 20 times as long


def prompt_id(custom_id: str, grid_point: Any) -> str:
    """A job's custom id without what a grid appended."""
    return custom_id.rsplit("#", 1)[0] if grid_point else custom_id


def prompt_key(prompt: str | None, messages: Any, chat: Any) -> int:
    """The same number for what asks the same: a prompt, or the messages of a chat with its tools and arguments."""
    return text_key(json.dumps([messages, chat], sort_keys=True) if prompt is None else prompt)


def text_key(text: str) -> int:
    """A number of 64 bits for a text, in this process; two that differ share it by one chance in 2 ** 64."""
    return hash(text) & 2**64 - 1


def rounded(value: float | None, digits: int) -> float | None:
    """A figure as a page has it; None for one that is not finite, which a page cannot compare with others."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


def cut(text: str) -> str:
    """A text as a page holds it."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text) - MAX_TEXT:,} more characters)"
