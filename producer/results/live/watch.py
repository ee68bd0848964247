"""Watching a run until it is finished: frames on a terminal, plain lines elsewhere. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Group
from rich.live import Live
from rich.text import Text
from sqlalchemy import Engine

from producer.console import say, stderr
from producer.results.live.frame import eta_text, frame, silence_line
from producer.results.live.observer import Observer
from producer.results.live.snapshot import Snapshot
from producer.results.queries import RunProgress, run_progress
from producer.results.run_tables import progress_line

POLL_SECONDS = 0.5
PLAIN_LINE_SECONDS = 10.0


def shows_frames(*, quiet: bool) -> bool:
    """Whether `watch` shows frames, the last of which is a summary: not on a terminal that cannot move its cursor."""
    return stderr.is_interactive and not quiet


def watch(
    database: Engine,
    run_id: str,
    *,
    check: Callable[[], None] = lambda: None,
    sleep: Callable[[float], None] = time.sleep,
    quiet: bool = False,
    is_loading: Callable[[], bool] = lambda: False,
) -> RunProgress:
    """Shows progress on stderr until the run is finished; returns the last progress.

    `check` is called at every poll and may raise: no worker is left, or a person interrupts. `sleep` may wake early.
    `is_loading` says whether a worker is being started here, for the time in which there is none.
    """
    if quiet:
        return _poll(lambda: run_progress(database, run_id), check, sleep)
    observer = Observer(database, run_id, is_loading)
    if shows_frames(quiet=quiet):
        with Live(Text(""), console=stderr, auto_refresh=False) as live:
            return _poll(lambda: _show(live, observer.look()), check, sleep)
    return _poll(PlainLines(observer).look, check, sleep)


def as_group(lines: Sequence[Text]) -> Group:
    """The lines as they are: none is folded again."""
    for line in lines:
        line.no_wrap = True
    return Group(*lines)


def _show(live: Live, snapshot: Snapshot) -> RunProgress:
    live.update(as_group(frame(snapshot, live.console.width)), refresh=True)
    return snapshot.progress


class PlainLines:
    """A line now and then, and one at the end."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._last = -PLAIN_LINE_SECONDS
        self._has_told_silence = False

    def look(self) -> RunProgress:
        snapshot = self._observer.look()
        progress = snapshot.progress
        if time.monotonic() - self._last >= PLAIN_LINE_SECONDS or progress.is_finished:
            say(progress_line(progress, eta_text(snapshot)))
            self._last = time.monotonic()
        self._tell_silence(snapshot)
        return progress

    def _tell_silence(self, snapshot: Snapshot) -> None:
        """Once for each silence."""
        is_silent = snapshot.silence is not None
        if is_silent and not self._has_told_silence:
            say(silence_line(snapshot.progress))
        self._has_told_silence = is_silent


def _poll(look: Callable[[], RunProgress], check: Callable[[], None], sleep: Callable[[float], None]) -> RunProgress:
    while True:
        progress = look()
        if progress.is_finished:
            return progress
        check()
        sleep(POLL_SECONDS)
