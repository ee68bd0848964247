"""The soak in short; `make soak` is the long one."""

from __future__ import annotations

from typing import Any

from tests.faults.soak import Soak
from tests.faults.topology import Answer, Topology

NUM_ACCIDENTS = 4


def test_a_short_night_of_accidents(
    topology: Topology, jobs: list[dict[str, Any]], expected: dict[str, Answer]
) -> None:
    counts = Soak(topology, seed=3).run(jobs, expected, lambda accidents: accidents >= NUM_ACCIDENTS)
    assert (counts["lost"], counts["doubled"], counts["differing"]) == (0, 0, 0), counts
