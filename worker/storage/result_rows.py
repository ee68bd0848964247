"""Results and token traces as rows: most of the bytes that a worker writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, text

from models.database.bulk_insert import insert_rows, to_json, without_nul
from models.schema.trace import TokenTrace
from worker.engine.request import Trace

RESULT_COLUMNS = (
    "id", "job_id", "sample_index", "text", "finish_reason", "prompt_tokens", "completion_tokens", "cumulative_logprob",
    "score", "hypotheses", "queued_seconds", "prefill_seconds", "decode_seconds", "environment_id",
    "prompt_hash", "prompt_text",
)  # fmt: skip

TRACE_COLUMNS = tuple(TokenTrace.__table__.columns.keys())

#: A result's id, the ids of its tokens, and its trace.
TracedResult = tuple[int, Sequence[int], Trace]


def insert_results(connection: Connection, rows: Iterable[Sequence[Any]]) -> None:
    """Inserts rows of `RESULT_COLUMNS`."""
    insert_rows(connection, "results", RESULT_COLUMNS, rows)


def insert_traces(connection: Connection, traced: Sequence[TracedResult]) -> None:
    """Inserts one row per token."""
    if traced:
        insert_rows(connection, "token_traces", TRACE_COLUMNS, _trace_rows(traced))


def reserve_result_ids(connection: Connection, count: int) -> Sequence[int]:
    """Reserves ids for that many rows of `results`."""
    if connection.dialect.name == "postgresql":
        statement = text("SELECT nextval(pg_get_serial_sequence('results', 'id')) FROM generate_series(1, :count)")
        return list(connection.execute(statement, {"count": count}).scalars())
    # The transaction began with the write lock, so no other one inserts meanwhile.
    last = connection.execute(text("SELECT coalesce(max(id), 0) FROM results")).scalar_one()
    return range(last + 1, last + 1 + count)


def _trace_rows(traced: Sequence[TracedResult]) -> Iterator[tuple[Any, ...]]:
    for result_id, token_ids, trace in traced:
        length = len(token_ids)
        alternatives = [None] * length if trace.top_logprobs is None else map(to_json, trace.top_logprobs)
        columns: dict[str, Iterable[Any]] = {
            "result_id": [result_id] * length,
            "position": range(length),
            "token_id": token_ids,
            "token": map(without_nul, trace.tokens),
            "logprob": trace.logprobs,
            "sampling_logprob": trace.sampling_logprobs,
            "entropy": trace.entropies,
            "rank": trace.ranks,
            "kept": trace.kept,
            "top_logprobs": alternatives,
            "beam": [None] * length if trace.beams is None else trace.beams,
            "token_bytes": [None] * length if trace.token_bytes is None else trace.token_bytes,
        }
        yield from zip(*(columns[name] for name in TRACE_COLUMNS), strict=True)
