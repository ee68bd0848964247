"""`producer status`: the newest runs, or one, once or until it is finished."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Engine

from models.database.connection import open_database
from models.settings import Settings
from producer.console import say, stdout
from producer.render import print_progress, progress_line, runs_table, to_json, visible
from producer.results.progress import Rate, watch
from producer.results.queries import (
    RunProgress,
    find_run,
    live_workers,
    recent_errors,
    recent_runs,
    run_progress,
    waiting_by_model,
)


def show_status(settings: Settings, reference: str | None, *, is_watching: bool, as_json: bool) -> int:
    """Returns the exit code: 1 where the run that was asked for has jobs that did not succeed."""
    database = open_database(settings.database_url, read_only=True)
    if reference is None and not is_watching:
        runs = recent_runs(database)
        if as_json:
            print(to_json([asdict(run) for run in runs]))  # noqa: T201
        else:
            stdout.print(runs_table(runs))
            _say_what_nobody_serves(database)
        return 0
    run_id = find_run(database, reference)
    progress = watch(database, run_id, quiet=as_json) if is_watching else run_progress(database, run_id)
    if as_json:
        print_progress(progress)
    else:
        _show(progress)
        for custom_id, error in recent_errors(database, run_id):
            say(f"failed: {visible(custom_id)}: {visible(error)}")
    return 1 if progress.failed or progress.expired or progress.cancelled else 0


def _say_what_nobody_serves(database: Engine) -> None:
    served = {worker.model for worker in live_workers(database)}
    for model, count in waiting_by_model(database).items():
        if model not in served:
            say(f"{count:,} jobs wait for {model}: no worker serves it; start one with: worker start --model {model}")


def _show(progress: RunProgress) -> None:
    stdout.print(runs_table([progress]))
    if progress.is_finished:
        return
    say(progress_line(progress, Rate().eta(progress)))
    if not progress.num_workers:
        say(f"no worker serves {progress.model}; start one with: worker start --model {progress.model}")
