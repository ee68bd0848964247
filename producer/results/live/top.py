"""`producer top`: all workers and the latest runs, on one screen that is drawn again until Ctrl-C. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rich.live import Live
from rich.text import Text

from models.settings import Settings
from producer.console import print_data, stdout
from producer.render import to_json
from producer.results.database import reading
from producer.results.live.observer import RunningSequences, worker_state
from producer.results.live.snapshot import WorkerState
from producer.results.live.watch import as_group
from producer.results.queries import RunProgress, live_workers, recent_runs
from producer.results.sql.layout import column_widths, fitting, table_lines

SECONDS = 1.0
MAX_RUNS = 10

#: The columns of each table, the most important first: a narrow terminal leaves out the last.
WORKER_COLUMNS = ("worker", "tokens/s", "running", "device", "model")
RUN_COLUMNS = ("run", "state", "done", "jobs", "failed", "name", "model")


@dataclass(frozen=True)
class Top:
    """A moment of all workers and the latest runs."""

    workers: tuple[WorkerState, ...]
    runs: tuple[RunProgress, ...]


def top_frame(top: Top, width: int) -> list[Text]:
    """The lines of a frame, none longer than the width."""
    speed = sum(worker.tokens_per_second for worker in top.workers)
    num_open = sum(not run.is_finished for run in top.runs)
    head = Text(f"{len(top.workers):,} workers · {num_open:,} runs unfinished · {speed:,.0f} tokens/s", style="bold")
    head.truncate(width, overflow="ellipsis")
    workers = [
        (each.name, f"{each.tokens_per_second:,.0f}", f"{each.running:,.0f}/{each.max_num_seqs:,}", each.device,
         each.model)
        for each in top.workers
    ]  # fmt: skip
    runs = [
        (each.id, each.state, f"{each.num_final / max(each.num_jobs, 1):.0%}", f"{each.num_jobs:,}", f"{each.failed:,}",
         each.name or "", each.model)
        for each in top.runs
    ]  # fmt: skip
    return [head, Text(), *_table(WORKER_COLUMNS, workers, width), Text(), *_table(RUN_COLUMNS, runs, width)]


def show_top(settings: Settings, *, as_json: bool) -> None:
    """Shows frames until Ctrl-C on a terminal, one frame elsewhere, or JSON."""
    with reading(settings) as database:
        running = RunningSequences()

        def look() -> Top:
            workers = tuple(worker_state(each, running) for each in live_workers(database))
            runs = sorted(recent_runs(database, MAX_RUNS), key=lambda run: run.is_finished)
            return Top(workers, tuple(runs))

        if as_json:
            print_data(to_json(asdict(look())))
        elif not stdout.is_interactive:
            stdout.print(as_group(top_frame(look(), stdout.width)))
        else:
            _draw(look)


def _draw(look: Callable[[], Top]) -> None:
    with Live(Text(""), console=stdout, auto_refresh=False) as live:
        try:
            while True:
                live.update(as_group(top_frame(look(), live.console.width)), refresh=True)
                time.sleep(SECONDS)
        except KeyboardInterrupt:
            return


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[Text]:
    """The columns that fit, the first three at least."""
    for count in range(len(columns), 2, -1):
        widths = column_widths(columns[:count], [row[:count] for row in rows], width, is_short=True)
        if widths is not None:
            break
    else:
        all_widths = column_widths(columns[:count], [row[:count] for row in rows], None, is_short=True)
        widths = fitting(all_widths or [], width)
    head, *lines = table_lines(columns[:count], [row[:count] for row in rows], widths, is_short=True)
    return [Text(head, style="bold"), *map(Text, lines)]
