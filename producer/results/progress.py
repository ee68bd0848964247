"""Watching a run until it is finished: a live view on a terminal, plain lines elsewhere. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.live import Live
from rich.text import Text
from sqlalchemy import Engine

from producer.console import say, stderr
from producer.results.live_view import live_view
from producer.results.queries import RunProgress, live_workers, recent_errors, run_progress
from producer.results.run_tables import progress_line

POLL_SECONDS = 0.5
PLAIN_LINE_SECONDS = 10.0


class Rate:
    """Estimates the time left from the jobs finished since watching began."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def eta(self, progress: RunProgress) -> str:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, progress.num_final)
        started, done_then = self._first
        done, left = progress.num_final - done_then, progress.num_jobs - progress.num_final
        if not left:
            return "done"
        if not done:
            return "ETA unknown"
        seconds = int(left * (now - started) / done)
        return f"ETA {seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


def watch(
    database: Engine,
    run_id: str,
    *,
    check: Callable[[], None] = lambda: None,
    sleep: Callable[[float], None] = time.sleep,
    quiet: bool = False,
) -> RunProgress:
    """Shows progress on stderr until the run is finished; returns the last progress.

    `check` is called at every poll and may raise: no worker is left, or a person interrupts. `sleep` may wake early.
    """
    rate = Rate()
    if quiet:
        return _poll(database, run_id, check, sleep, lambda _: None)
    if not stderr.is_terminal:
        return _watch_plainly(database, run_id, check, sleep, rate)
    return _watch_live(database, run_id, check, sleep, rate)


def _watch_live(
    database: Engine, run_id: str, check: Callable[[], None], sleep: Callable[[float], None], rate: Rate
) -> RunProgress:
    with Live(Text("waiting for a worker"), console=stderr, auto_refresh=False) as live:

        def show(progress: RunProgress) -> None:
            workers = [worker for worker in live_workers(database) if worker.model == progress.model]
            errors = recent_errors(database, run_id)
            live.update(live_view(progress, rate.eta(progress), workers, errors), refresh=True)

        return _poll(database, run_id, check, sleep, show)


def _watch_plainly(
    database: Engine, run_id: str, check: Callable[[], None], sleep: Callable[[float], None], rate: Rate
) -> RunProgress:
    last = -PLAIN_LINE_SECONDS

    def show(progress: RunProgress) -> None:
        nonlocal last
        line = progress_line(progress, rate.eta(progress))
        if time.monotonic() - last >= PLAIN_LINE_SECONDS or progress.is_finished:
            say(line)
            last = time.monotonic()

    return _poll(database, run_id, check, sleep, show)


def _poll(
    database: Engine,
    run_id: str,
    check: Callable[[], None],
    sleep: Callable[[float], None],
    show: Callable[[RunProgress], None],
) -> RunProgress:
    while True:
        progress = run_progress(database, run_id)
        show(progress)
        if progress.is_finished:
            return progress
        check()
        sleep(POLL_SECONDS)
