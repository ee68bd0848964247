"""Two runs compared by custom_id: the jobs of the first are read a page at a time, with those of the second by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, column, func, select, table

from models.schema.job import Job
from producer.results.queries import JOBS_PER_PAGE, RunProgress, decode_row
from producer.results.report.answer_figures import Answers, measured
from producer.results.report.measures import asked, asks_for_json, cut, prompt_key, rounded
from producer.results.report.summary import Summary
from producer.results.selection import Selection

#: Pairs of one chunk.
PAIRS_PER_CHUNK = 100

COLUMNS = (
    "job_id", "custom_id", "state", "strategy", "sample_index", "text", "finish_reason", "completion_tokens",
    "cumulative_logprob", "error", "metadata", "prompt", "messages", "chat",
)  # fmt: skip

Pair = tuple[dict[str, Any], dict[str, Any]]


@dataclass
class PairPage:
    """The selected jobs of a page of the first run with their partners in the second."""

    pairs: list[Pair]
    num_alone: int  # selected jobs without a partner
    num_partners: int  # of all jobs of the page


class Comparison:
    """The figures of the pairs so far, and the ids of those that the page shows."""

    def __init__(self, max_pairs: int | None) -> None:
        self._max_pairs = max_pairs
        self.summaries = (Summary(), Summary())
        self.changes: Counter[str] = Counter()
        self.shown: list[tuple[int, str, str]] = []  # id of the first run's job, custom id, kind of change
        self._num_alone = 0
        self._num_partners = 0

    def add(self, page: PairPage) -> None:
        """Counts pairs of first samples."""
        self._num_alone += page.num_alone
        self._num_partners += page.num_partners
        for side, summary in enumerate(self.summaries):
            rows = [pair[side] for pair in page.pairs]
            summary.jobs.update(row["state"] for row in rows)
            summary.add(_figures([row for row in rows if row["text"] is not None]))
        for first, second in page.pairs:
            kind = kind_of_change(first["text"], second["text"])
            self.changes[kind] += 1
            if self._max_pairs is None or len(self.shown) < self._max_pairs:
                self.shown.append((first["job_id"], first["custom_id"], kind))

    def num_alone(self, second: RunProgress) -> tuple[int, int]:
        """The selected jobs of the first run, and the jobs of the second, that the other run lacks."""
        return self._num_alone, second.num_jobs - self._num_partners

    def described(self, runs: tuple[RunProgress, RunProgress]) -> dict[str, Any]:
        """The chunk of figures."""
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
            "only": self.num_alone(runs[1]),
            "pairs": [{"id": custom_id, "kind": kind} for _, custom_id, kind in self.shown],
        }  # fmt: skip


def kind_of_change(before: str | None, after: str | None) -> str:
    """`same`, `changed`, `gained`, `lost` or `neither`, by the first answers of a job in both runs."""
    if before is None or after is None:
        return "neither" if before is after else "gained" if before is None else "lost"
    return "same" if before == after else "changed"


def pair_pages(database: Engine, run_ids: tuple[str, str], selection: Selection = Selection()) -> Iterator[PairPage]:
    """The first samples of the jobs that both runs have, in the order of the first run; each page is a transaction."""
    after = 0
    while rows := _page(database, run_ids[0], after):
        after = rows[-1]["job_id"]
        partners = _partners(database, rows, run_ids[1])
        selected = [row for row in rows if _is_selected(row, selection)]
        pairs = _paired(selected, partners)
        yield PairPage(pairs, len(selected) - len(pairs), len(partners))


def pair_chunks(database: Engine, comparison: Comparison, second: str) -> Iterator[dict[str, Any]]:
    """The shown pairs with their texts."""
    for first in range(0, len(comparison.shown), PAIRS_PER_CHUNK):
        ids = [job_id for job_id, _, _ in comparison.shown[first : first + PAIRS_PER_CHUNK]]
        rows = _rows(database, VIEW.c.job_id.in_(ids))
        pairs = _paired(rows, _partners(database, rows, second))
        yield {
            "first": first,
            "pairs": [{"ask": _ask(pair[0]), "sides": [_side(row) for row in pair]} for pair in pairs],
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


def _partners(database: Engine, rows: Sequence[dict[str, Any]], second: str) -> dict[str, dict[str, Any]]:
    """Custom id -> the row of the second run, of those that it has."""
    names = [row["custom_id"] for row in rows]
    jobs = select(Job.id).where(Job.run_id == second, Job.custom_id.in_(names))
    return {row["custom_id"]: row for row in _rows(database, VIEW.c.job_id.in_(jobs))}


def _paired(rows: Sequence[dict[str, Any]], partners: Mapping[str, dict[str, Any]]) -> list[Pair]:
    return [(row, partners[row["custom_id"]]) for row in rows if row["custom_id"] in partners]


def _is_selected(row: dict[str, Any], selection: Selection) -> bool:
    """Whether the first run's job is selected."""
    has_state = not selection.states or row["state"] in selection.states
    has_strategy = not selection.strategies or row["strategy"] in selection.strategies
    return has_state and has_strategy and selection.matches(row)


def _figures(rows: Sequence[dict[str, Any]]) -> Answers:
    return measured(
        [(prompt_key(row["prompt"], row["messages"], row["chat"]), asks_for_json(asked(row))) for row in rows],
        *([row[name] for row in rows] for name in ("text", "completion_tokens", "cumulative_logprob", "finish_reason")),
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
        "lp": rounded(logprob / length, 4) if length else None,
    }
    return {name: value for name, value in fields.items() if value is not None}
