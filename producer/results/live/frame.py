"""A frame of the live view, for any width: one story of a run, from its name to its last failure. Knows no database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from producer.render import visible
from producer.results.live.snapshot import Snapshot, WorkerState
from producer.results.queries import PAUSED, RunProgress
from producer.results.run_tables import unserved

#: Count of `RunProgress` -> its words and color. They add up to all jobs.
STATES = {
    "succeeded": ("succeeded", "green"),
    "failed": ("failed", "red"),
    "cancelled": ("cancelled", "yellow"),
    "expired": ("expired", "yellow"),
    "running": ("with workers", "cyan"),
    "queued": ("waiting", "dim"),
}

SEPARATOR = " · "
WIDE, LEAST_BAR = 60, 8  # from this width on the bar shares its line, if it keeps so many cells
MAX_WORKERS = 6
MAX_LINES = 2  # of an answer, and of an error
REMEDY_LINES = 8


def frame(snapshot: Snapshot, width: int) -> list[Text]:
    """The lines of a frame, none longer than the width; that of a finished run is its summary."""
    progress = snapshot.progress
    lines = [*_head(snapshot, width), *_bar(snapshot, width), *_states(progress, width), *_speed(snapshot, width)]
    if not progress.is_finished:
        lines += _workers(snapshot, width)
        if snapshot.newest is not None:
            custom_id, answer = snapshot.newest
            lines += _folded("newest", f"{_on_one_line(custom_id)}: {_on_one_line(answer)}", width, "")
    for custom_id, error in snapshot.errors:
        lines += _folded("failed", f"{_on_one_line(custom_id)}: {_on_one_line(error)}", width, "red")
    return lines


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def eta_text(snapshot: Snapshot) -> str:
    """The time that is left, in words; `done` for a finished run."""
    if snapshot.progress.is_finished:
        return "done"
    if snapshot.is_loading:
        return "loading the model"
    if snapshot.silence is not None:
        return f"no sign of life for {clock(snapshot.silence)}"
    return "no ETA yet" if snapshot.seconds_left is None else f"ETA {clock(snapshot.seconds_left)}"


def _head(snapshot: Snapshot, width: int) -> Iterator[Text]:
    progress = snapshot.progress
    name = [Text(_on_one_line(progress.name), style="bold")] if progress.name else []
    word = "in" if progress.is_finished else "elapsed"
    return _packed(
        [*name, Text(f"run {progress.id}"), Text(progress.state), Text(f"{word} {clock(snapshot.elapsed)}")], width
    )


def _bar(snapshot: Snapshot, width: int) -> Iterator[Text]:
    progress = snapshot.progress
    share = progress.num_final / max(progress.num_jobs, 1)
    parts = [Text(f"{share:.0%}"), Text(f"{progress.num_final:,} of {progress.num_jobs:,} jobs")]
    if not (progress.is_finished or progress.state == PAUSED):
        parts.append(Text(eta_text(snapshot)))
    told = Text(SEPARATOR).join(parts)
    beside = width - told.cell_len - 2
    is_beside = width >= WIDE and beside >= LEAST_BAR
    length = beside if is_beside else width
    num_done = int(length * share)
    bar = Text("━" * num_done, style="green") + Text("─" * (length - num_done), style="dim")
    if is_beside:
        yield bar + Text("  ") + told
    else:
        yield bar
        yield from _packed(parts, width)


def _states(progress: RunProgress, width: int) -> Iterator[Text]:
    counts = [(getattr(progress, name), *words) for name, words in STATES.items()]
    return _packed([Text(f"{count:,} {word}", style=color) for count, word, color in counts if count], width)


def _speed(snapshot: Snapshot, width: int) -> Iterator[Text]:
    progress, workers = snapshot.progress, snapshot.workers
    mean = snapshot.mean_tokens_per_second
    parts = []
    if progress.is_finished:
        parts.append(f"{progress.completion_tokens:,} tokens")
    elif workers:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s now")
    if mean is not None:
        parts.append(f"{mean:,.0f} {'tokens/s' if progress.is_finished else 'mean'}")
    if workers and not progress.is_finished:
        running, slots = sum(each.running for each in workers), sum(each.max_num_seqs for each in workers)
        parts.append(f"{running:,.0f} of {slots:,} sequences running")
    return _packed([Text(part) for part in parts], width)


def silence_line(progress: RunProgress) -> str:
    """The line about workers that were there and are not heard of."""
    return (
        f"the workers of {_on_one_line(progress.model)} start again, or do not reach the database (is its disk full?): "
        "see their logs; the run goes on when they do"
    )


def _workers(snapshot: Snapshot, width: int) -> Iterator[Text]:
    if snapshot.silence is not None:
        yield from _folded("silent", silence_line(snapshot.progress), width, "yellow", REMEDY_LINES)
    elif not snapshot.workers:
        yield from _folded("", _nobody(snapshot), width, "dim", REMEDY_LINES)
    is_alone = len(snapshot.workers) == 1
    for worker in snapshot.workers[:MAX_WORKERS]:
        yield from _packed([Text(part, style="dim") for part in _worker(worker, is_alone=is_alone)], width)
    if (more := len(snapshot.workers) - MAX_WORKERS) > 0:
        yield Text(f"and {more:,} more workers", style="dim")


def _nobody(snapshot: Snapshot) -> str:
    model = _on_one_line(snapshot.progress.model)
    if snapshot.is_loading:
        return f"loading {model}"
    return f"{unserved(model)}; start one with: worker start --model {model}"


def _worker(worker: WorkerState, *, is_alone: bool) -> list[str]:
    parts = [f"worker {_on_one_line(worker.name)}", f"on {_on_one_line(worker.device)}"]
    if not is_alone:  # else the sums above are its own
        parts += [f"{worker.tokens_per_second:,.0f} tokens/s", f"{worker.running:,.0f} of {worker.max_num_seqs:,}"]
    return [*parts, "draining"] if worker.is_draining else parts


def _packed(parts: Sequence[Text], width: int) -> Iterator[Text]:
    """The parts, side by side as far as the width goes; one that is longer is cut."""
    line = Text()
    for part in parts:
        part.truncate(width, overflow="ellipsis")
        if line.cell_len and line.cell_len + len(SEPARATOR) + part.cell_len > width:
            yield line
            line = Text()
        line = line + Text(SEPARATOR, style="dim") + part if line.cell_len else part
    if line.cell_len:
        yield line


def _folded(label: str, text: str, width: int, style: str, max_lines: int = MAX_LINES) -> Iterator[Text]:
    """A label and a text of a few lines, cut with an ellipsis."""
    line = Text(f"{label}  ", style="dim") if label else Text()
    indent = line.cell_len
    body = Text(text, style=style)
    for number in range(max_lines):
        free = width - indent
        part, body = _first(body, free)
        if number == max_lines - 1 and body.cell_len:
            part.truncate(free - 1)
            part.append("…")
        yield (line if number == 0 else Text(" " * indent)) + part
        if not body.cell_len:
            return


def _first(text: Text, width: int) -> tuple[Text, Text]:
    """The part of a text that fits, up to a word's end where there is one, and the rest."""
    if text.cell_len <= width:
        return text, Text()
    part = text.copy()
    part.truncate(width)
    end = len(part.plain)
    if text[:end].cell_len > width:  # a wide character at the border has become a space
        end -= 1
    space = text.plain.rfind(" ", 0, end + 1)
    cut = space if space > end // 2 else end
    rest = text[cut:]
    return text[:cut], rest[1:] if rest.plain.startswith(" ") else rest


def _on_one_line(text: str) -> str:
    return visible(" ".join(text.split()))
