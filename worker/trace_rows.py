"""Storing token traces: by far the most rows, so by the fastest way each database has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection

from worker.engine.request import Trace

COLUMNS = (
    "result_id", "position", "token_id", "token", "logprob", "sampling_logprob", "entropy", "rank", "kept",
    "top_logprobs", "beam",
)  # fmt: skip

#: A trace with the id of its result and its token ids.
TracedResult = tuple[int, Sequence[int], Trace]


def insert_traces(connection: Connection, traced: Sequence[TracedResult]) -> None:
    """Writes one row per token inside the connection's transaction: COPY on PostgreSQL, executemany on SQLite."""
    if not traced:
        return
    cursor: Any = connection.connection.cursor()  # the driver's own: SQLAlchemy's per-row work would dominate
    try:
        if connection.dialect.name == "postgresql":
            with cursor.copy(f"COPY token_traces ({', '.join(COLUMNS)}) FROM STDIN") as copy:
                for row in _rows(traced):
                    copy.write_row(row)
        else:
            marks = ", ".join("?" * len(COLUMNS))
            cursor.executemany(f"INSERT INTO token_traces ({', '.join(COLUMNS)}) VALUES ({marks})", _rows(traced))
    finally:
        cursor.close()


def _rows(traced: Sequence[TracedResult]) -> Iterator[tuple[Any, ...]]:
    for result_id, token_ids, trace in traced:
        length = len(token_ids)
        tokens = [token.replace("\0", "\ufffd") for token in trace.tokens]  # PostgreSQL's text cannot hold NUL
        alternatives = [None] * length if trace.top_logprobs is None else map(_to_json, trace.top_logprobs)
        yield from zip(
            [result_id] * length,
            range(length),
            token_ids,
            tokens,
            trace.logprobs,
            trace.sampling_logprobs,
            trace.entropies,
            trace.ranks,
            trace.kept,
            alternatives,
            [None] * length if trace.beams is None else trace.beams,
            strict=True,
        )


def _to_json(alternatives: list[dict[str, Any]]) -> str:
    return json.dumps(alternatives).replace("\\u0000", "\\ufffd")
