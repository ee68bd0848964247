"""The time of a file by its number of jobs: ours, and `generate` in batches of 64, alternately.

    python -m benchmarks.scaling --jobs 1 4 16 64 256 --picture docs/pictures/scaling.svg

Each file holds the first jobs of one long-tailed file. Prints seconds and seconds per job, medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.support.pictures import draw_scaling
from benchmarks.support.timing import alternate, timed
from benchmarks.support.workload import long_tailed
from benchmarks.throughput import Contenders


def median_seconds(contenders: Contenders, names: list[str], rounds: int) -> dict[str, float]:
    """Each contender's median over alternating rounds."""
    variants = {name: partial(timed, partial(contenders.run, name)) for name in names}
    return {name: median(values) for name, values in alternate(variants, rounds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peer", default="static", help="of benchmarks.throughput")
    parser.add_argument("--peer-most", type=int, default=256, help="most jobs that the peer is given; it takes long")
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    requests = long_tailed(max(given.jobs))
    contenders = Contenders(torch.bfloat16, requests, max_num_seqs=64, static_batch=64)
    seconds: dict[str, dict[int, float]] = {"ours": {}, given.peer: {}}
    contenders.requests = requests[:1]
    for name in seconds:  # to warm up
        contenders.run(name)
    for count in given.jobs:
        contenders.requests = requests[:count]
        names = ["ours", given.peer] if count <= given.peer_most else ["ours"]
        medians = median_seconds(contenders, names, given.rounds)
        for name, value in medians.items():
            seconds[name][count] = value
        line = ", ".join(f"{name} {value:.1f} s ({value / count:.2f} s a job)" for name, value in medians.items())
        print(f"{count:4} jobs: {line}", flush=True)
    print(json.dumps(seconds))
    if given.picture is not None:
        draw_scaling(seconds, given.picture)


if __name__ == "__main__":
    main()
