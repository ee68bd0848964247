"""How the time of a file grows with its number of jobs: ours, and `generate` in batches of 64, alternately.

    python -m benchmarks.scaling --jobs 1 4 16 64 256 --picture docs/pictures/growth.svg

The files are the first so many of one long-tailed file. Prints seconds and seconds per job, medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.support.pictures import draw_growth
from benchmarks.support.workload import long_tailed
from benchmarks.throughput import Contenders, timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peer", default="static", help="of benchmarks.throughput")
    parser.add_argument("--peer-most", type=int, default=256, help="most jobs that the peer is given; it takes long")
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    requests = long_tailed(max(given.jobs))
    contenders = Contenders(torch.bfloat16, requests, slots=64, static_batch=64)
    seconds: dict[str, dict[int, float]] = {"ours": {}, given.peer: {}}
    contenders.requests = requests[:1]
    for name in seconds:  # to warm up
        contenders.run(name)
    for count in given.jobs:
        contenders.requests = requests[:count]
        names = ["ours", given.peer] if count <= given.peer_most else ["ours"]
        taken: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(given.rounds):
            for name in names:
                taken[name].append(timed(partial(contenders.run, name)))
        for name in names:
            seconds[name][count] = median(taken[name])
        told = ", ".join(
            f"{name} {seconds[name][count]:.1f} s ({seconds[name][count] / count:.2f} s a job)" for name in names
        )
        print(f"{count:4} jobs: {told}", flush=True)
    print(json.dumps(seconds))
    if given.picture is not None:
        draw_growth(seconds, given.picture)


if __name__ == "__main__":
    main()
