"""The progress of a download: a line that is rewritten on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import monotonic

FIRST_LINE_SECONDS = 2.0  # a short download says nothing
LOG_SECONDS, TERMINAL_SECONDS = 15.0, 0.5
BLOCK_BYTES = 512  # of `st_blocks`


@contextmanager
def showing_progress(model: str, cache: Path, total: int) -> Iterator[None]:
    """Shows how the files of a model grow in the hub's cache while the body downloads them."""
    is_done = Event()
    thread = Thread(target=_show, args=(model, cache, total, is_done), daemon=True, name="download-progress")
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()


def _show(model: str, cache: Path, total: int, is_done: Event) -> None:
    before, start = cached_bytes(cache), monotonic()
    is_terminal = sys.stderr.isatty()
    interval = TERMINAL_SECONDS if is_terminal else LOG_SECONDS
    is_shown = False
    while not is_done.wait(interval if is_shown else FIRST_LINE_SECONDS):
        is_shown = True
        line = progress_line(model, cached_bytes(cache) - before, total, monotonic() - start)
        print(f"\r\x1b[K{line}" if is_terminal else line, file=sys.stderr, end="" if is_terminal else "\n", flush=True)  # noqa: T201
    if is_shown:
        print("\r\x1b[K" * is_terminal + f"downloaded {model}", file=sys.stderr, flush=True)  # noqa: T201


def progress_line(model: str, done: int, total: int, seconds: float) -> str:
    """The state of a download in words, with the time that is left at its mean speed."""
    share = f"{done / 1e9:,.2f} of {total / 1e9:,.2f} GB" if total else f"{done / 1e9:,.2f} GB"
    speed = done / max(seconds, 1e-9)
    left = f", {max(total - done, 0) / speed / 60:,.0f} min left" if total and speed else ""
    return f"downloading {model}: {share}, {speed / 1e6:,.1f} MB/s{left}"


def cached_bytes(cache: Path) -> int:
    """The bytes on disk of a model's files in the cache, unfinished ones included."""
    total = 0
    for path in (cache / "blobs").glob("*"):
        try:
            found = path.stat()
        except FileNotFoundError:  # renamed at its end
            continue
        total += min(found.st_size, found.st_blocks * BLOCK_BYTES)
    return total
