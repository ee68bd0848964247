"""Rows as a Parquet file, a row group at a time: times are timestamps in UTC, lists and objects are nested.

A JSON column has the type that all its values share.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any

from sqlalchemy import Float, Integer

from models.schema.trace import TokenTrace
from producer.errors import UsageError
from producer.render import to_json
from producer.results.queries import TIME_COLUMNS, TRACE_COLUMNS

ROWS_PER_GROUP = 5_000

INTEGERS = ("job_id", "seed", "sample_index", "prompt_tokens", "completion_tokens", "attempts")
FLOATS = ("cumulative_logprob", "score", "queued_seconds", "prefill_seconds", "decode_seconds")

#: The parts of a token's alternatives.
ALTERNATIVE = {"token_id": "integer", "token": "string", "bytes": "string", "logprob": "float"}


#: Objects of more keys, or nested deeper, are JSON text.
MAX_KEYS, MAX_DEPTH = 500, 20

MAX_INTEGER, MAX_EXACT_IN_FLOAT = 2**63 - 1, 2**53


def write_parquet(
    columns: Iterable[str], rows: Iterable[dict[str, Any]], types: Mapping[str, JsonType], file: IO[bytes]
) -> None:
    """Writes the columns; `types` are those of JSON columns."""
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([(name, _arrow_type(name, types)) for name in columns])
    with parquet.ParquetWriter(file, schema) as writer:
        for group in _groups(rows):
            plain = [{name: _fitted(name, row[name], types) for name in schema.names} for row in group]
            writer.write_table(pyarrow.Table.from_pylist(plain, schema=schema))


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    remaining = iter(rows)
    while group := list(islice(remaining, ROWS_PER_GROUP)):
        yield group


def _fitted(name: str, value: Any, types: Mapping[str, JsonType]) -> Any:
    return types[name].fit(value) if name in types else value


def _arrow_type(name: str, types: Mapping[str, JsonType]) -> Any:
    import pyarrow

    if name in types:
        return types[name].arrow()
    if name == "trace":
        return pyarrow.list_(pyarrow.struct([(part, _token_type(part)) for part in TRACE_COLUMNS]))
    if name in TIME_COLUMNS:
        return pyarrow.timestamp("us", tz="UTC")
    return pyarrow.int64() if name in INTEGERS else pyarrow.float64() if name in FLOATS else pyarrow.string()


def _token_type(part: str) -> Any:
    """The type of a part of a trace's tokens, which the table says."""
    import pyarrow

    if part == "top_logprobs":
        parts = {name: JsonType(kind).arrow() for name, kind in ALTERNATIVE.items()}
        return pyarrow.list_(pyarrow.struct(list(parts.items())))
    kind = TokenTrace.__table__.columns[part].type
    return pyarrow.int64() if isinstance(kind, Integer) else (
        pyarrow.float64() if isinstance(kind, Float) else pyarrow.string()
    )  # fmt: skip


@dataclass
class JsonType:
    """The type of all values seen so far.

    A value of any other type makes it `mixed`: strings as they are, everything else as JSON text.
    """

    kind: str = "null"  # null, bool, integer, float, string, list, object or mixed
    keys: dict[str, JsonType] = field(default_factory=dict)  # of an object
    item: JsonType | None = None  # of a list
    largest: int = 0  # integer of either sign

    def see(self, value: Any, depth: int = 0) -> None:
        """Widens the type so that it takes the value."""
        if value is None or self.kind == "mixed":
            return
        kind = _kind_of(value)
        self.kind = kind if self.kind == "null" else self._common(kind)
        if kind == "integer":
            self.largest = max(self.largest, abs(value))
        if self.largest > (MAX_EXACT_IN_FLOAT if self.kind == "float" else MAX_INTEGER) or depth > MAX_DEPTH:
            self.kind = "mixed"
        if self.kind == "list":
            self.item = self.item or JsonType()
            for inner in value:
                self.item.see(inner, depth + 1)
        elif self.kind == "object":
            num_before = len(self.keys)
            for key, inner in value.items():
                self.keys.setdefault(key, JsonType()).see(inner, depth + 1)
            if len(self.keys) > num_before and not _are_columns(self.keys):
                self.kind = "mixed"

    def _common(self, kind: str) -> str:
        if {self.kind, kind} == {"integer", "float"}:
            return "float"
        return kind if kind == self.kind else "mixed"

    def arrow(self) -> Any:
        """Arrow's type."""
        import pyarrow

        if self.kind == "list" and self.item is not None:
            return pyarrow.list_(self.item.arrow())
        if self.kind == "object" and self.keys:
            return pyarrow.struct([(key, inner.arrow()) for key, inner in self.keys.items()])
        simple = {"bool": pyarrow.bool_(), "integer": pyarrow.int64(), "float": pyarrow.float64()}
        return simple.get(self.kind, pyarrow.string())

    def fit(self, value: Any) -> Any:
        """The value as the type has it. Raises `UsageError` for one that was not seen."""
        if value is None or (isinstance(value, str) and self.kind in ("mixed", "string")):
            return value
        if self.kind == "mixed" or value == {} and not self.keys:
            return to_json(value)
        if _kind_of(value) != self.kind and not (self.kind == "float" and _kind_of(value) == "integer"):
            raise UsageError("the run got other jobs while it was read; run the command once more")
        if self.kind == "list" and self.item is not None:
            return [self.item.fit(inner) for inner in value]
        if self.kind == "object":
            return {key: self._at(key).fit(inner) for key, inner in value.items()}
        return value

    def _at(self, key: str) -> JsonType:
        return self.keys.get(key) or JsonType()


def _are_columns(keys: Collection[str]) -> bool:
    """Whether every reader takes the keys for columns: DuckDB has none without a name, and no two of other case."""
    return len(keys) <= MAX_KEYS and "" not in keys and len({key.lower() for key in keys}) == len(keys)


def _kind_of(value: Any) -> str:
    kinds = {bool: "bool", int: "integer", float: "float", str: "string", list: "list", dict: "object"}
    return kinds[type(value)]
