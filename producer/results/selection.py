"""The selection of a run's jobs by state, strategy and metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.states import JobState, Strategy
from producer.errors import UsageError
from producer.key_values import json_or_text


@dataclass(frozen=True)
class Selection:
    """A selection; an empty tuple selects all."""

    states: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    metadata: tuple[tuple[str, Any], ...] = ()  # dotted keys and the values they must have

    @property
    def words(self) -> str:
        """The selection in words, to follow "jobs with"; empty for all jobs."""
        parts = [("state", self.states), ("strategy", self.strategies)]
        told = [f"{name} {' or '.join(values)}" for name, values in parts if values]
        return "; ".join([*told, *(f"{key} = {_word(value)}" for key, value in self.metadata)])

    def matches(self, row: dict[str, Any]) -> bool:
        """Whether a row's metadata has the values; the database compares states and strategies."""
        return all(_value_at(row.get("metadata"), key) == value for key, value in self.metadata)


def parse_selection(states: str | None, strategies: str | None, where: Sequence[str]) -> Selection:
    """The selection of comma lists and of KEY=VALUE with a JSON value or a plain word. Raises `UsageError`."""
    return Selection(
        _names("--state", states, [str(state) for state in JobState]),
        _names("--strategy", strategies, [str(strategy) for strategy in Strategy]),
        tuple(_condition(text) for text in where),
    )


def _names(option: str, text: str | None, known: list[str]) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",")) if text is not None else ()
    for name in names:
        if name not in known:
            raise UsageError(f"{option} must be one of {', '.join(known)}, got {name!r}")
    return names


def _condition(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"--where must be KEY=VALUE, such as topic=cats or user.age=3, got {text!r}")
    return key, json_or_text(value)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _value_at(metadata: Any, dotted: str) -> Any:
    if isinstance(metadata, dict) and dotted in metadata:
        return metadata[dotted]
    for part in dotted.split("."):
        if not isinstance(metadata, dict) or part not in metadata:
            return None
        metadata = metadata[part]
    return metadata
