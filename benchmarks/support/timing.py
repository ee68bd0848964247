"""Seconds of an action, and variants measured alternately, so that a machine's drift meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

#: Is told of each measurement: the round from 1 on, the variant's name, its seconds.
OnMeasured = Callable[[int, str, float], None]


def timed(action: Callable[[], object]) -> float:
    """Seconds that the action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def alternate(
    variants: Mapping[str, Callable[[], float]], rounds: int, on_measured: OnMeasured | None = None
) -> dict[str, list[float]]:
    """Measures every variant once a round; each returns its seconds. Returns the seconds of all rounds by name."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(1, rounds + 1):
        for name, measure in variants.items():
            seconds[name].append(measure())
            if on_measured is not None:
                on_measured(number, name, seconds[name][-1])
    return seconds


def print_rate(num_tokens: int, width: int = 18) -> OnMeasured:
    """Prints each measurement as tokens per second."""

    def on_measured(number: int, name: str, seconds: float) -> None:
        print(f"round {number}: {name:{width}} {num_tokens / seconds:8.1f} tokens/s", flush=True)

    return on_measured
