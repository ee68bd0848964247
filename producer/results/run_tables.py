"""Runs as text: the table of `status`, the line of a run in progress, JSON, and which workers are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table
from sqlalchemy import Engine

from models.settings import Settings
from producer.console import print_data
from producer.home import Holder, holder_of, home_options
from producer.render import table, to_json
from producer.results.queries import PAUSED, RunProgress, overfull_workers, stalled_models, unserved_models

COLUMNS = (
    "run", "name", "state", "jobs", "succeeded", "failed", "cancelled", "expired", "running", "queued", "tokens",
    "model",
)  # fmt: skip


def runs_table(runs: Sequence[RunProgress]) -> Table:
    """The table of `producer status`."""
    rows = [
        (run.id, run.name or "", run.state, run.num_jobs, run.succeeded, run.failed, run.cancelled, run.expired,
         run.running, run.queued, run.completion_tokens, run.model)
        for run in runs
    ]  # fmt: skip
    return table(COLUMNS, rows, whole=COLUMNS[:-1])


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
    """A complaint for each thing between the queue and the stored results that stands still or falls behind."""
    return unserved_lines(database) + stalled_lines(database) + overfull_lines(database)


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
