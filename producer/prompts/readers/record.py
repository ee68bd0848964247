"""A record of a prompt file, and what a reader is told about the file. Knows no format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.params import RESOLVED_PARAMETERS, GenerationParams
from producer.errors import LineProblem, UsageError

MAX_LINE_BYTES = 16 * 2**20
MAX_COLUMNS = 10_000
MAX_SHOWN_NAMES = 50
MAX_RAW_BYTES = 1_000  # of a line that cannot be decoded, kept for the file of invalid lines

PARAMETER_FIELDS = frozenset(GenerationParams.model_fields) - RESOLVED_PARAMETERS
CHAT_FIELDS = frozenset({"tools", "documents", "chat_template_kwargs"})
OWN_FIELDS = frozenset({"custom_id", "prompt", "messages", "priority"}) | CHAT_FIELDS

#: From here on a float may stand for several whole numbers.
EXACT_FLOATS = 2**53

#: Containers inside each other: as deep as every step takes, from JSON and pickling to the databases.
MAX_NESTING = 100


@dataclass(frozen=True)
class Record:
    """One line or row of a file."""

    number: int  # of its first physical line, or of its row
    raw: str  # as it stands in the file, for the file of invalid lines
    fields: dict[str, Any]
    problem: LineProblem | None = None  # set: there are no fields
    num_lines: int = 1  # physical lines
    #: The prompt or the messages that an option names; `fields` has then metadata under these names.
    named: dict[str, Any] = field(default_factory=dict)
    column: str | None = None  # the option's name for it
    asked_model: Any = None  # by a line of OpenAI's, as it stands there
    place: int = 1  # among the records that begin in its line, of which an array has many

    @property
    def name(self) -> str:
        """The record's own name in its file: `7`, and `7.2` for the second one that begins in line 7."""
        return str(self.number) if self.place == 1 else f"{self.number}.{self.place}"

    @property
    def shown_number(self) -> str:
        """Its line for messages, with its place among several that begin there."""
        return str(self.number) if self.place == 1 else f"{self.number} (record {self.place} of the line)"

    @property
    def last_number(self) -> int:
        return self.number + self.num_lines - 1


@dataclass(frozen=True)
class FileFacts:
    """The facts about a file that the command line gives its reader."""

    #: Raises `UsageError` for a header that lacks a column the options name.
    check_columns: Callable[[list[str]], None]
    encoding: str = "utf-8"
    #: The columns to read; None: all.
    wanted: frozenset[str] | None = None


def check_number_of_columns(place: str, number: int, facts: FileFacts) -> None:
    """Raises `UsageError` for a table of very many columns, all of which would be kept with each job."""
    if number > MAX_COLUMNS and facts.wanted is None:
        raise UsageError(
            f"{place} has {number:,} columns, and at most {MAX_COLUMNS:,} are kept as metadata; name those you need "
            "with --metadata-columns"
        )


def shown_names(names: Sequence[str]) -> str:
    """The names of columns for a message, of very many the first."""
    more = f" and {len(names) - MAX_SHOWN_NAMES:,} more" if len(names) > MAX_SHOWN_NAMES else ""
    return ", ".join(name[:100] for name in names[:MAX_SHOWN_NAMES]) + more


def parsed(number: int, raw: str, parse: Callable[[], dict[str, Any]], num_lines: int = 1, place: int = 1) -> Record:
    """The record with the fields that `parse` returns, or with the problem that it raises."""
    try:
        return Record(number, raw, parse(), None, num_lines, place=place)
    except LineProblem as problem:
        return Record(number, raw, {}, problem, num_lines, place=place)


def check_nesting(fields: dict[str, Any]) -> None:
    """Raises `LineProblem` for a field that is nested too deeply to travel and to be stored."""
    for name, value in fields.items():
        level, depth = [value], 0
        while level := [each for each in level if isinstance(each, dict | list)]:
            depth += 1
            if depth > MAX_NESTING:
                raise LineProblem(name, f"is nested more than {MAX_NESTING} levels deep; make it flatter")
            level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]


def whole_number(name: str, value: Any) -> Any:
    """A parameter's value; a whole number that a table's tool wrote as 7.0 becomes 7, if it was not rounded."""
    is_number = name in PARAMETER_FIELDS or name in ("priority", "custom_id")
    is_whole = is_number and isinstance(value, float) and value.is_integer() and abs(value) < EXACT_FLOATS
    return int(value) if is_whole else value


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The `object_pairs_hook` of JSON. Raises `LineProblem` for a name that comes twice with different values."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        for name, value in pairs:
            if value != fields[name]:
                raise LineProblem(name, "comes twice in an object, with different values; leave one out")
    return fields
