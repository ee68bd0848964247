"""One topology for each database, shared by the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.faults.topology import Answer, Topology, mixed_jobs, undisturbed
from tests.support.postgres import new_postgres_database

NUM_JOBS = 300


@pytest.fixture(scope="session")
def jobs() -> list[dict[str, Any]]:
    return mixed_jobs(NUM_JOBS)


@pytest.fixture(scope="session")
def expected(jobs: list[dict[str, Any]]) -> dict[str, Answer]:
    """The answers of an undisturbed run."""
    return undisturbed(jobs)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def topology(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    folder = tmp_path_factory.mktemp("topology")
    with ExitStack() as stack:
        if request.param == "sqlite":
            url = f"sqlite:///{folder / 'nocturne.db'}"
        else:
            url = stack.enter_context(new_postgres_database(request.getfixturevalue("postgres_server")))
        yield stack.enter_context(Topology(folder, url))
