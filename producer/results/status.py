"""`producer status`: the newest runs, or one of them, once or until it is finished."""

from __future__ import annotations

from dataclasses import asdict

from models.settings import Settings
from producer.console import say, stdout
from producer.render import to_json, visible
from producer.results.database import readable_database
from producer.results.progress import Rate, watch
from producer.results.queries import RunProgress, find_run, recent_errors, recent_runs, run_progress
from producer.results.run_tables import no_worker, print_run, progress_line, runs_table, unserved_lines


def show_status(settings: Settings, reference: str | None, *, is_watching: bool, as_json: bool) -> int:
    """Prints one run or the newest; returns the exit code: 1 for a run with jobs that did not succeed."""
    database = readable_database(settings)
    if reference is None and not is_watching:
        runs = recent_runs(database)
        if as_json:
            print(to_json([asdict(run) for run in runs]))  # noqa: T201
        else:
            stdout.print(runs_table(runs))
            for line in unserved_lines(database):
                say(line)
        return 0
    run_id = find_run(database, reference)
    progress = watch(database, run_id, quiet=as_json) if is_watching else run_progress(database, run_id)
    if as_json:
        print_run(progress)
    else:
        _show(progress)
        for custom_id, error in recent_errors(database, run_id):
            say(f"failed: {visible(custom_id)}: {visible(error)}")
    return 1 if progress.failed or progress.expired or progress.cancelled else 0


def _show(progress: RunProgress) -> None:
    stdout.print(runs_table([progress]))
    if progress.is_finished:
        return
    say(progress_line(progress, Rate().eta(progress)))
    if not progress.num_workers:
        say(no_worker(progress.model))
