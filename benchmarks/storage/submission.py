"""The speed of checking, writing and sending a file, and the memory it takes; without a worker and a model.

    python -m benchmarks.storage.submission --lines 100000 1000000

Each size runs in a process of its own (`producer submit` to SQLite and an embedded Redis). Prints lines/s of each
part and the process's peak memory, which should not grow with the file.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from migrations.upgrade import upgrade
from models.database.connection import open_database
from models.settings import Settings
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import Submission
from producer.prompts.validation import check
from producer.runs.broker import send_run
from producer.runs.embedded import LocalServices
from producer.runs.writer import write


def make_file(path: Path, num_lines: int) -> None:
    with path.open("w") as file:
        for number in range(num_lines):
            line = {"custom_id": f"job-{number}", "prompt": f"Write a story about number {number}.", "topic": "numbers"}
            file.write(json.dumps(line) + "\n")


def measure(folder: Path, num_lines: int) -> dict[str, float]:
    """Runs the parts one after another in this process."""
    path = folder / "prompts.jsonl"
    make_file(path, num_lines)
    database = open_database(f"sqlite:///{folder / 'nocturne.db'}")
    upgrade(database)
    submission = Submission(path, "toy", Grid({}), seed=1)
    with LocalServices(Settings(home=folder)) as local:
        started = time.perf_counter()
        checked = check(submission)
        after_check = time.perf_counter()
        written = write(submission, checked, database)
        after_write = time.perf_counter()
        assert send_run(local.settings, database, written.run_id) == num_lines
        after_send = time.perf_counter()
    return {
        "lines": num_lines,
        "checked_per_second": num_lines / (after_check - started),
        "written_per_second": num_lines / (after_write - after_check),
        "sent_per_second": num_lines / (after_send - after_write),
        "seconds": after_send - started,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    for num_lines in given.lines:
        if given.in_process:
            with tempfile.TemporaryDirectory(prefix="nocturne-") as folder:
                print(json.dumps(measure(Path(folder), num_lines)))
            continue
        command = [sys.executable, "-m", "benchmarks.storage.submission", "--in-process", "--lines", str(num_lines)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"{num_lines:>9,} lines: checked {result['checked_per_second']:,.0f}/s, "
            f"written {result['written_per_second']:,.0f}/s, sent {result['sent_per_second']:,.0f}/s, "
            f"{result['seconds']:.1f} s in all, peak {result['peak_mib']:.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
