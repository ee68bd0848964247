"""Runs as text: the table of `status`, the line of a run in progress, JSON, and which workers are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table
from sqlalchemy import Engine

from producer.render import table, to_json
from producer.results.queries import RunProgress, unserved_models

COLUMNS = ("run", "name", "state", "jobs", "succeeded", "failed", "running", "queued", "tokens", "model")


def runs_table(runs: Sequence[RunProgress]) -> Table:
    """The table of `producer status`."""
    rows = [
        (run.id, run.name or "", run.state, run.num_jobs, run.succeeded, run.failed, run.running, run.queued,
         run.completion_tokens, run.model)
        for run in runs
    ]  # fmt: skip
    return table(COLUMNS, rows, whole=COLUMNS[:-1])


def progress_line(progress: RunProgress, eta: str) -> str:
    """One line about a run in progress."""
    return (
        f"{progress.num_final:,} of {progress.num_jobs:,} jobs done, {progress.failed:,} failed, "
        f"{progress.running:,} running, {progress.tokens_per_second:,.0f} tokens/s, {eta}"
    )


def print_run(progress: RunProgress) -> None:
    """Prints a run as JSON on stdout, for programs."""
    print(to_json(asdict(progress)))  # noqa: T201


def no_worker(model: str) -> str:
    """The complaint about a model that no worker serves."""
    return f"no worker serves {model}; {_start(model)}"


def unserved_lines(database: Engine) -> list[str]:
    """A complaint for each model that has waiting jobs and no worker."""
    return [
        f"{count:,} jobs wait for {model}: no worker serves it; {_start(model)}"
        for model, count in unserved_models(database).items()
    ]


def _start(model: str) -> str:
    return f"start one with: worker start --model {model}"
