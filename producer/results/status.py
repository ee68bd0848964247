"""`producer status`: the newest runs, or one of them, once or until it is finished."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

from sqlalchemy import Engine

from models.entry_point import EXIT_INTERRUPTED
from models.settings import Settings
from producer.console import print_data, say, stdout
from producer.home import holder_of
from producer.render import to_json, visible
from producer.results.database import reading
from producer.results.live.frame import eta_text
from producer.results.live.observer import Observer
from producer.results.live.watch import shows_frames, watch
from producer.results.queries import RunProgress, find_run, recent_errors, recent_runs, run_progress
from producer.results.run_tables import open_run_lines, print_run, progress_line, runs_table


def show_status(settings: Settings, reference: str | None, *, is_watching: bool, as_json: bool) -> int:
    """Prints one run or the newest; returns the exit code: 1 for a run with jobs that did not succeed."""
    with reading(settings) as database:
        return _show_status(database, settings, reference, is_watching=is_watching, as_json=as_json)


def _show_status(
    database: Engine, settings: Settings, reference: str | None, *, is_watching: bool, as_json: bool
) -> int:
    if reference is None and not is_watching:
        runs = recent_runs(database)
        if as_json:
            print_data(to_json([asdict(run) for run in runs]))
        else:
            stdout.print(runs_table(runs, stdout.width))
            for line in open_run_lines(database, runs, settings):
                say(line)
        return 0
    run_id = find_run(database, reference)
    try:
        if is_watching:
            loading = partial(_is_loading, settings, run_id)
            progress = watch(database, run_id, quiet=as_json, is_loading=loading)
        else:
            progress = run_progress(database, run_id)
    except KeyboardInterrupt:
        say(f"no longer watching; run {run_id} stays as it is")
        return EXIT_INTERRUPTED
    if as_json:
        print_run(progress)
    elif not (is_watching and shows_frames(quiet=False) and stdout.is_terminal):  # the last frame has said it
        _show(database, progress, settings)
        for custom_id, error in recent_errors(database, run_id):
            say(f"failed: {visible(custom_id)}: {visible(error)}")
    return 1 if progress.failed or progress.expired or progress.cancelled else 0


def _show(database: Engine, progress: RunProgress, settings: Settings) -> None:
    stdout.print(runs_table([progress], stdout.width))
    if progress.is_finished:
        return
    say(progress_line(progress, eta_text(Observer(database, progress.id).look())))
    for line in open_run_lines(database, [progress], settings):
        say(line)


def _is_loading(settings: Settings, run_id: str) -> bool:
    """Whether a process decodes the run in this home: while there is no worker, it starts one."""
    holder = holder_of(settings.home) if settings.is_embedded else None
    return holder is not None and holder.run == run_id
