"""Two workers of one thread each that share a run, against one; and a second worker that joins in the middle.

    python -m benchmarks.two_workers --jobs 400 --model qwen2-0.5b

SQLite, forced lengths; the toy model, whose workers spend as much time on other work as on decoding, or Qwen2-0.5B's
shape with random weights. Prints the ratio of throughputs, the time between the two workers' last commits, and how long
a worker that joins at half of the run waits for its first job.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import func, select

from benchmarks.against_peers import save_model_for_text
from benchmarks.pipeline import seconds_of_work
from benchmarks.support.workload import TOY_MODEL
from models.schema.job import Job
from models.schema.run import Run
from tests.faults.topology import Topology
from tests.support.processes import wait_until

#: Heartbeats as rare as by default; those of the tests are more frequent. With 64 running sequences and 400 jobs each
#: worker would fill and drain its batch for most of the run.
SETTINGS = {"NOCTURNE_HEARTBEAT_SECONDS": "2", "NOCTURNE_MAX_NUM_SEQS": "16"}

#: Seconds between two queries for a run's state: each takes processor time from the workers.
POLL_SECONDS = 1.0

#: Bounds of the answers' lengths, with which a run takes a few minutes.
LENGTHS = {"toy": (100, 300), "qwen2-0.5b": (40, 120)}


def jobs_of(count: int, lengths: tuple[int, int]) -> list[dict[str, Any]]:
    rng = random.Random(0)
    return [
        {
            "custom_id": f"{n}",
            "prompt": f"Story {n}: a hedgehog named {rng.randint(10, 9999)}",
            "max_new_tokens": rng.randint(*lengths),
            "ignore_eos": True,
            "seed": n,
        }
        for n in range(count)
    ]


def last_commits(topology: Topology) -> dict[str, float]:
    """Seconds from the first claim to each worker's last commit."""
    with topology.database.connect() as connection:
        began = connection.execute(select(func.min(Job.started_at))).scalar_one()
        rows = connection.execute(select(Job.worker, func.max(Job.finished_at)).group_by(Job.worker)).all()
    seconds = {}
    for worker, ended in rows:
        assert began is not None and worker is not None and ended is not None
        seconds[worker] = (ended - began).total_seconds()
    return seconds


def run_with(model: Path, jobs: list[dict[str, Any]], *names: str) -> tuple[float, dict[str, float]]:
    """Runs the jobs on workers of these names; returns the run's seconds and those to each worker's last commit."""
    with tempfile.TemporaryDirectory(prefix="nocturne-") as folder:
        with Topology(Path(folder), f"sqlite:///{folder}/nocturne.db", model, SETTINGS) as topology:
            topology.need_workers(*names)
            run_id = topology.submit(jobs)
            topology.wait(run_id, seconds=1200, interval=POLL_SECONDS)
            with topology.database.connect() as connection:
                num_succeeded = connection.execute(select(Run.num_succeeded).where(Run.id == run_id)).scalar_one()
            if num_succeeded < len(jobs):
                raise SystemExit(f"only {num_succeeded} of {len(jobs)} jobs succeeded")
            return seconds_of_work(topology.database), last_commits(topology)


def seconds_to_first_claim(model: Path, jobs: list[dict[str, Any]]) -> float:
    """A second worker joins at half of the run; returns its seconds from ready to its first job."""
    with tempfile.TemporaryDirectory(prefix="nocturne-") as folder:
        with Topology(Path(folder), f"sqlite:///{folder}/nocturne.db", model, SETTINGS) as topology:
            topology.need_workers("first")
            run_id = topology.submit(jobs)
            topology.wait_for_some(run_id, len(jobs) // 2)
            topology.need_workers("first", "second")
            ready = time.monotonic()

            def has_a_job() -> bool:
                with topology.database.connect() as connection:
                    statement = select(func.count()).select_from(Job).where(Job.worker == "second")
                    return bool(connection.execute(statement).scalar_one())

            wait_until(has_a_job)
            waited = time.monotonic() - ready
            topology.wait(run_id, seconds=1200, interval=POLL_SECONDS)
            return waited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", choices=list(LENGTHS), default="toy")
    parser.add_argument("--folder", type=Path, help="for the model, kept for the next call; default: a temporary one")
    given = parser.parse_args()
    jobs = jobs_of(given.jobs, LENGTHS[given.model])
    with tempfile.TemporaryDirectory() as temporary:
        model = TOY_MODEL if given.model == "toy" else save_model_for_text(given.folder or Path(temporary))
        measure(model, jobs, given.rounds)


def measure(model: Path, jobs: list[dict[str, Any]], rounds: int) -> None:
    """Prints each round's ratio, then the medians and the time that a joining worker waits."""
    ratios, imbalances = [], []
    for _ in range(rounds):
        alone, _ = run_with(model, jobs, "first")
        together, ends = run_with(model, jobs, "first", "second")
        ratios.append(alone / together)
        imbalances.append((max(ends.values()) - min(ends.values())) / together)
        print(
            f"one {alone:.1f} s, two {together:.1f} s: {ratios[-1]:.2f} x, ends {imbalances[-1]:.1%} apart", flush=True
        )
    print(f"median {median(ratios):.2f} x, ends {median(imbalances):.1%} of the run apart")
    print(f"a worker that joins has its first job after {seconds_to_first_claim(model, jobs):.1f} s")


if __name__ == "__main__":
    main()
