"""The pictures of docs/performance.md, each drawn by the benchmark that measured its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams.update({"svg.hashsalt": "nocturne", "font.size": 10, "axes.grid": True, "grid.alpha": 0.3})

from matplotlib import pyplot as plt  # noqa: E402  after the backend is chosen

LABELS = {"ours": "ours", "static": "generate, batches of 64", "one": "generate, one at a time"}


@dataclass(frozen=True)
class DecodeStep:
    """The medians of a step with `running` sequences."""

    running: int
    step_milliseconds: float
    bound_milliseconds: float  # oneDNN's bare matmuls


def draw_decode(steps: Sequence[DecodeStep], path: Path) -> None:
    """Useful tokens per second against running sequences, with the bound."""
    figure, axes = _new_picture("running sequences", "tokens/s", "Decoding, Qwen2-0.5B's shape in bf16")
    running = [step.running for step in steps]
    axes.plot(
        running,
        [1000 * s.running / s.bound_milliseconds for s in steps],
        "--",
        color="0.4",
        label="the bound: oneDNN's bare matmuls",
    )
    axes.plot(running, [1000 * s.running / s.step_milliseconds for s in steps], "o-", label="ours, the whole step")
    _save(figure, axes, path)


def draw_scaling(seconds: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Seconds of a file against its number of jobs."""
    figure, axes = _new_picture("jobs in the file", "seconds", "Long-tailed files, Qwen2-0.5B's shape in bf16")
    for name, by_count in seconds.items():
        axes.plot(list(by_count), list(by_count.values()), "o-", label=LABELS.get(name, name))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    counts = sorted({count for by_count in seconds.values() for count in by_count})
    axes.set_xticks(counts, [str(count) for count in counts])
    _save(figure, axes, path)


def _new_picture(x: str, y: str, title: str) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    return figure, axes


def _save(figure: Any, axes: Any, path: Path) -> None:
    axes.set_ylim(bottom=0 if axes.get_yscale() == "linear" else None)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)
    plt.close(figure)
