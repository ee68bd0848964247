"""The time from `kill -9` of a worker until its jobs run elsewhere: default settings, two workers on the toy model.

python -m benchmarks.storage.recovery --rounds 3
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import func, select

from models.schema.job import Job
from models.schema.job_event import JobEvent
from models.states import JobState
from tests.faults.topology import SETTINGS, Topology
from tests.support.processes import wait_until

#: The tests' settings without those that this measures: they are the defaults.
MEASURED = ("NOCTURNE_LEASE_SECONDS", "NOCTURNE_VISIBILITY_TIMEOUT", "NOCTURNE_MAX_ATTEMPTS")
DEFAULTS = {name: value for name, value in SETTINGS.items() if name not in MEASURED}

JOB: dict[str, Any] = {"prompt": "Once upon a time", "max_new_tokens": 1900, "ignore_eos": True}


def recover(folder: Path) -> float:
    """Kills one of two workers; returns the seconds until the other has claimed the last of its jobs."""
    with Topology(folder, f"sqlite:///{folder / 'nocturne.db'}", settings=DEFAULTS) as topology:
        topology.need_workers("doomed", "heir")
        run_id = topology.submit([{**JOB, "custom_id": f"{n}"} for n in range(32)])

        def jobs_of(worker: str) -> set[int]:
            with topology.database.connect() as connection:
                running = select(Job.id).where(Job.worker == worker, Job.state == JobState.RUNNING)
                return set(connection.execute(running).scalars())

        wait_until(lambda: bool(jobs_of("doomed")) and bool(jobs_of("heir")))
        killed_at = datetime.now(UTC)
        os.killpg(topology.workers["doomed"].pid, signal.SIGKILL)
        orphans = jobs_of("doomed")
        wait_until(lambda: orphans.isdisjoint(jobs_of("doomed")) and orphans <= claimed_by_heir(topology, orphans))
        with topology.database.connect() as connection:
            claims = select(func.max(JobEvent.at)).where(
                JobEvent.job_id.in_(orphans), JobEvent.to_state == JobState.RUNNING, JobEvent.worker == "heir"
            )
            last = connection.execute(claims).scalar_one()
        topology.producer("cancel", run_id, *topology.connection)
    assert isinstance(last, datetime)
    return (last - killed_at).total_seconds()


def claimed_by_heir(topology: Topology, job_ids: set[int]) -> set[int]:
    """Those of the jobs that the surviving worker has claimed."""
    with topology.database.connect() as connection:
        statement = select(JobEvent.job_id).where(JobEvent.job_id.in_(job_ids), JobEvent.worker == "heir")
        return set(connection.execute(statement).scalars())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    seconds = []
    for number in range(parser.parse_args().rounds):
        with tempfile.TemporaryDirectory(prefix="nocturne-") as folder:
            seconds.append(recover(Path(folder)))
        print(f"round {number + 1}: {seconds[-1]:.1f} s", flush=True)
    print(f"median {median(seconds):.1f} s")


if __name__ == "__main__":
    main()
