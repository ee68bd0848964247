"""The soak in short, in `make faults`; `make soak` is the long one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.soak import WRONG, Soak
from tests.faults.topology import Answer, Topology


def soak(
    topology: Topology, jobs: list[dict[str, Any]], expected: dict[str, Answer], num_accidents: int, *kinds: str
) -> None:
    topology.settings = {**topology.settings, "NOCTURNE_MAX_NUM_SEQS": "4"}  # slow, and a group of beams fits
    with Soak(topology, seed=3) as accidents:
        counts = accidents.run(jobs, expected, lambda number, _: number >= num_accidents, kinds)
    assert {name: counts[name] for name in WRONG} == dict.fromkeys(WRONG, 0), counts


@pytest.mark.long
def test_a_short_night_of_accidents(
    topology: Topology, jobs: list[dict[str, Any]], expected: dict[str, Answer]
) -> None:
    locked = "database locked" if topology.is_sqlite else "tables locked"
    soak(topology, jobs, expected, 4, "worker killed", "redis lost its data", "database's clock set", locked)


@pytest.mark.long
def test_a_night_with_every_accident(
    topology: Topology, jobs: list[dict[str, Any]], expected: dict[str, Answer]
) -> None:
    soak(topology, jobs, expected, 16)
