"""Runs as text: the table of `status`, the line of a run in progress, JSON, and which workers are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from sqlalchemy import Engine

from models.settings import Settings
from producer.console import print_data
from producer.home import Holder, holder_of, home_options
from producer.render import table, to_json, visible
from producer.results.queries import PAUSED, RunProgress, overfull_workers, stalled_models, unserved_models
from producer.results.unlike_workers import unlike_lines

#: Column of the table -> the attribute of `RunProgress`.
COLUMNS = {
    "run": "id", "name": "name", "state": "state", "jobs": "num_jobs", "succeeded": "succeeded", "failed": "failed",
    "cancelled": "cancelled", "expired": "expired", "running": "running", "queued": "queued",
    "tokens": "completion_tokens", "model": "model",
}  # fmt: skip

#: Left out one by one where a terminal is too narrow: first the counts that are 0 in every run.
COUNTS = ("cancelled", "expired", "queued", "running")
SPARE = ("model", "tokens", "running", "queued", "name", "jobs")

FOLDED = {"name": 16, "model": 16}  # columns whose cells may be folded, to this width
GAP = 2


def runs_table(runs: Sequence[RunProgress], width: int) -> Table:
    """The table of `producer status` in a width of characters: no cell is cut but that of a very long name."""
    rows = [{column: _shown(getattr(run, name)) for column, name in COLUMNS.items()} for run in runs]
    columns = _fitting(rows, width)
    whole = set(columns) - set(FOLDED) if _width(columns, rows) <= width else ()
    return table(columns, [[row[column] for column in columns] for row in rows], whole=whole)


def _fitting(rows: Sequence[dict[str, str]], width: int) -> list[str]:
    columns = list(COLUMNS)
    zero = [column for column in COUNTS if all(row[column] == "0" for row in rows)]
    for column in dict.fromkeys([*zero, *SPARE]):
        if _width(columns, rows) <= width:
            break
        columns.remove(column)
    return columns


def _width(columns: Sequence[str], rows: Sequence[dict[str, str]]) -> int:
    """The least width in which the columns are readable."""
    longest = {column: max(cell_len(cell) for cell in (column, *(row[column] for row in rows))) for column in columns}
    needed = [min(width, FOLDED.get(column, width)) for column, width in longest.items()]
    return sum(needed) + GAP * (len(columns) - 1)


def _shown(value: Any) -> str:
    return "" if value is None else visible(str(value))


def progress_line(progress: RunProgress, eta: str) -> str:
    """One line about a run in progress."""
    return (
        f"{'paused: ' if progress.state == PAUSED else ''}"
        f"{progress.num_final:,} of {progress.num_jobs:,} jobs done, {final_counts(progress)}, "
        f"{progress.running:,} running, {progress.tokens_per_second:,.0f} tokens/s, {eta}"
    )


def final_counts(progress: RunProgress) -> str:
    """The jobs that ended without an answer: those that failed, and cancelled and expired ones where there are any."""
    counts = {"failed": progress.failed, "cancelled": progress.cancelled, "expired": progress.expired}
    return ", ".join(f"{count:,} {state}" for state, count in counts.items() if count or state == "failed")


def print_run(progress: RunProgress) -> None:
    """Prints a run as JSON on stdout, for programs."""
    print_data(to_json(asdict(progress)))


def resume_line(progress: RunProgress, options: str) -> str:
    """The advice about an embedded run that nobody decodes."""
    return (
        f"run {progress.id} is {progress.state}, {progress.num_final:,} of {progress.num_jobs:,} jobs are done; "
        f"go on with: producer resume {progress.id}{options}"
    )


def decoded_line(holder: Holder) -> str:
    """The line about the process that decodes in a home."""
    log = f"; its log is {holder.log}" if holder.log is not None else ""
    return f"{holder} decodes here{log}"


def open_run_lines(database: Engine, runs: Sequence[RunProgress], settings: Settings) -> list[str]:
    """The lines about the runs that are not finished: who decodes them, or the way to go on."""
    if not settings.is_embedded:
        paused = [paused_line(run, settings) for run in runs if run.state == PAUSED]
        return paused + queue_lines(database)
    holder = holder_of(settings.home)
    idle = [run for run in runs if not run.is_finished and (holder is None or holder.run != run.id)]
    lines = [decoded_line(holder)] if holder is not None else []
    return lines + [_idle_line(run, settings) for run in idle] + overfull_lines(database)


def paused_line(run: RunProgress, settings: Settings) -> str:
    """The advice about a run that a person has paused."""
    running = f", {run.running:,} jobs still run" if run.running else ""
    return f"run {run.id} is paused{running}; go on with: producer unpause {run.id}{home_options(settings)}"


def _idle_line(run: RunProgress, settings: Settings) -> str:
    return paused_line(run, settings) if run.state == PAUSED else resume_line(run, home_options(settings))


def queue_lines(database: Engine) -> list[str]:
    """A complaint for each thing between the queue and the stored results that is not as it should be."""
    return unserved_lines(database) + stalled_lines(database) + unlike_lines(database) + overfull_lines(database)


def unserved_lines(database: Engine) -> list[str]:
    """A complaint for each model that has waiting jobs and no worker."""
    return [
        f"{count:,} jobs wait: {unserved(model)}; start one with: worker start --model {model}"
        for model, count in unserved_models(database).items()
    ]


def stalled_lines(database: Engine) -> list[str]:
    """A complaint for each model whose workers live and claim nothing while jobs wait."""
    return [
        f"the queue is not empty ({count:,} jobs wait for {model}), and nothing was claimed for {seconds:,.0f} s: "
        "see the logs of its workers, and whether they reach Redis and the database"
        for model, (count, seconds) in stalled_models(database).items()
    ]


def overfull_lines(database: Engine) -> list[str]:
    """A complaint for each worker whose finished jobs wait to be stored."""
    return [
        f"the database is behind: {worker.results_held:,} finished jobs of {worker.name} wait to be stored; "
        "runs with --trace none, or a faster database, would keep up"
        for worker in overfull_workers(database)
    ]


def unserved(model: str) -> str:
    """The clause about a model without a worker."""
    return f"no worker serves {model}"
