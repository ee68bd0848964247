"""The live view of `run` and `status --watch`: bar, states, speed, workers, last errors. Knows no database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from producer.render import visible
from producer.results.queries import RunProgress
from producer.results.run_tables import unserved

STATE_COLOURS = {
    "succeeded": "green", "failed": "red", "cancelled": "yellow", "expired": "yellow", "running": "cyan",
    "queued": "dim",
}  # fmt: skip


def live_view(
    progress: RunProgress, eta: str, workers: Sequence[Any], errors: Sequence[tuple[str, str]]
) -> RenderableType:
    """One frame: `workers` are rows of the workers table, `errors` pairs of custom id and error."""
    parts: list[RenderableType] = [_head(progress, eta), _states(progress)]
    parts += [_worker(worker) for worker in workers]
    if not workers and not progress.is_finished:
        parts.append(Text(f"{unserved(progress.model)} yet", style="dim"))
    parts += [Text(f"failed: {visible(custom_id)}: {visible(error)}", style="red") for custom_id, error in errors]
    return Group(*parts)


def _head(progress: RunProgress, eta: str) -> Table:
    line = Table.grid(padding=(0, 1))
    share = progress.num_final / max(progress.num_jobs, 1)
    line.add_row(
        ProgressBar(total=max(progress.num_jobs, 1), completed=progress.num_final, width=36),
        f"{share:4.0%}",
        f"{progress.num_final:,}/{progress.num_jobs:,} jobs",
        f"{progress.tokens_per_second:,.0f} tokens/s",
        f"{progress.mean_running:.1f} running",
        eta,
    )
    return line


def _states(progress: RunProgress) -> Text:
    text = Text()
    for state, colour in STATE_COLOURS.items():
        if count := getattr(progress, state):
            text.append(f"{count:,} {state}  ", style=colour)
    return text


def _worker(worker: Any) -> Text:
    return Text(
        f"{visible(worker.name)} on {worker.device}: {worker.tokens_per_second:,.0f} tokens/s, "
        f"{worker.mean_running:.1f} of {worker.max_num_seqs} sequences a step",
        style="dim",
    )
