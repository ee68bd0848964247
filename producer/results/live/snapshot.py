"""A moment of a run as the live view shows it. Plain values: a frame is a function of one."""

from __future__ import annotations

from dataclasses import dataclass

from producer.results.queries import RunProgress


@dataclass(frozen=True)
class WorkerState:
    """A worker of the run's model: its speed, and the sequences that decode side by side now."""

    name: str
    device: str
    model: str
    tokens_per_second: float
    running: float
    max_num_seqs: int
    is_draining: bool = False


@dataclass(frozen=True)
class Snapshot:
    """A moment of a run."""

    progress: RunProgress
    elapsed: float  # seconds since its submission, or until its end
    seconds_left: float | None = None
    mean_tokens_per_second: float | None = None  # while it was watched; of all its time once it is finished
    workers: tuple[WorkerState, ...] = ()
    is_loading: bool = False  # no worker is there yet, and one is being started here
    silence: float | None = (
        None  # seconds since the last sign of life of workers that were there; None while it is short
    )
    newest: tuple[str, str] | None = None  # custom id and text of the answer that came last
    errors: tuple[tuple[str, str], ...] = ()  # custom id and error of the jobs that failed last
