"""Two runs compared by custom_id: the jobs of the first are read a page at a time, with those of the second by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine, column, func, select, table

from models.schema.job import Job
from producer.results.queries import JOBS_PER_PAGE, RunProgress, decode_row
from producer.results.report.measures import asked, asks_for_json, cut, is_json, prompt_key, repetition, text_key
from producer.results.report.summary import Answer, Summary
from producer.results.selection import Selection

#: Pairs of one chunk.
PAIRS_PER_CHUNK = 100

COLUMNS = (
    "job_id", "custom_id", "state", "strategy", "sample_index", "text", "finish_reason", "completion_tokens",
    "cumulative_logprob", "error", "metadata", "prompt", "messages", "chat",
)  # fmt: skip

Pair = tuple[dict[str, Any], dict[str, Any]]


class Comparison:
    """The figures of the pairs so far, and the ids of those that the page shows."""

    def __init__(self, max_pairs: int | None) -> None:
        self._max_pairs = max_pairs
        self.summaries = (Summary(), Summary())
        self.changes: Counter[str] = Counter()
        self.shown: list[tuple[int, str, str]] = []  # id of the first run's job, custom id, kind of change

    def add(self, pair: Pair) -> None:
        """Counts a pair of first samples."""
        for summary, row in zip(self.summaries, pair, strict=True):
            summary.jobs[row["state"]] += 1
            if row["text"] is not None:
                summary.add(_figures(row))
        kind = kind_of_change(pair[0]["text"], pair[1]["text"])
        self.changes[kind] += 1
        if self._max_pairs is None or len(self.shown) < self._max_pairs:
            self.shown.append((pair[0]["job_id"], pair[0]["custom_id"], kind))

    def described(self, runs: tuple[RunProgress, RunProgress]) -> dict[str, Any]:
        """The chunk of figures."""
        both = self.changes.total()
        return {
            "kind": "comparison",
            "runs": [
                {
                    "letter": letter, "name": run.name or run.id, "id": run.id, "model": run.model,
                    **{name: value for name, value in summary.described().items() if name != "jobs"},
                    **{state: summary.jobs[state] for state in ("succeeded", "failed")}, "jobs": summary.jobs.total(),
                }
                for letter, run, summary in zip("AB", runs, self.summaries, strict=True)
            ],
            "changes": dict(self.changes),
            "only": [runs[0].num_jobs - both, runs[1].num_jobs - both],
            "pairs": [{"id": custom_id, "kind": kind} for _, custom_id, kind in self.shown],
        }  # fmt: skip


def kind_of_change(before: str | None, after: str | None) -> str:
    """`same`, `changed`, `gained`, `lost` or `neither`, by the first answers of a job in both runs."""
    if before is None or after is None:
        return "neither" if before is after else "gained" if before is None else "lost"
    return "same" if before == after else "changed"


def pairs(database: Engine, run_ids: tuple[str, str], selection: Selection = Selection()) -> Iterator[Pair]:
    """The first samples of the jobs that both runs have, in the order of the first run; each page is a transaction."""
    rows: list[dict[str, Any]] = [{"job_id": 0}]
    while rows:
        rows = _page(database, run_ids[0], rows[-1]["job_id"])
        yield from _paired(database, rows, run_ids[1], selection)


def pair_chunks(database: Engine, comparison: Comparison, second: str) -> Iterator[dict[str, Any]]:
    """The shown pairs with their texts."""
    for first in range(0, len(comparison.shown), PAIRS_PER_CHUNK):
        ids = [job_id for job_id, _, _ in comparison.shown[first : first + PAIRS_PER_CHUNK]]
        rows = _rows(database, VIEW.c.job_id.in_(ids))
        found = _paired(database, rows, second, Selection())
        yield {
            "first": first,
            "pairs": [{"ask": _ask(pair[0]), "sides": [_side(row) for row in pair]} for pair in found],
        }


VIEW = table("job_results", *map(column, (*COLUMNS, "run_id")))


def _page(database: Engine, run_id: str, after: int) -> list[dict[str, Any]]:
    with database.connect() as connection:
        statement = select(Job.id).where(Job.run_id == run_id, Job.id > after).order_by(Job.id).limit(JOBS_PER_PAGE)
        ids = connection.execute(statement).scalars().all()
    return _rows(database, VIEW.c.job_id.in_(ids)) if ids else []


def _rows(database: Engine, condition: Any) -> list[dict[str, Any]]:
    """The rows of first samples, and of jobs without any."""
    statement = select(*(VIEW.c[name] for name in COLUMNS)).where(condition, func.coalesce(VIEW.c.sample_index, 0) == 0)
    with database.connect() as connection:
        return [decode_row(dict(row)) for row in connection.execute(statement.order_by(VIEW.c.job_id)).mappings()]


def _paired(database: Engine, rows: list[dict[str, Any]], second: str, selection: Selection) -> Iterator[Pair]:
    names = [row["custom_id"] for row in rows]
    in_second = VIEW.c.job_id.in_(select(Job.id).where(Job.run_id == second, Job.custom_id.in_(names)))
    others = {row["custom_id"]: row for row in _rows(database, in_second)} if names else {}
    for row in rows:
        if row["custom_id"] in others and _is_selected(row, selection):
            yield row, others[row["custom_id"]]


def _is_selected(row: dict[str, Any], selection: Selection) -> bool:
    """Whether the first run's job is selected."""
    has_state = not selection.states or row["state"] in selection.states
    has_strategy = not selection.strategies or row["strategy"] in selection.strategies
    return has_state and has_strategy and selection.matches(row)


def _figures(row: dict[str, Any]) -> Answer:
    text, length = row["text"], row["completion_tokens"]
    return Answer(
        prompt=prompt_key(row["prompt"], row["messages"], row["chat"]),
        text=text_key(text),
        length=length,
        logprob=row["cumulative_logprob"] / length if length else None,
        repetition=repetition(text),
        is_json=is_json(text) if asks_for_json(asked(row)) else None,
        finish_reason=row["finish_reason"],
    )


def _ask(row: dict[str, Any]) -> Any:
    asking = asked(row)
    return cut(asking) if isinstance(asking, str) else asking


def _side(row: dict[str, Any]) -> dict[str, Any]:
    length, logprob = row["completion_tokens"], row["cumulative_logprob"]
    fields = {
        "text": None if row["text"] is None else cut(row["text"]),
        "state": row["state"],
        "error": row["error"] if row["text"] is None else None,
        "end": row["finish_reason"],
        "len": length,
        "lp": round(logprob / length, 4) if length else None,
    }
    return {name: value for name, value in fields.items() if value is not None}
