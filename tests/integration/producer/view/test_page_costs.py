"""The pages of `producer view` cost no more in a large database, in steps of SQLite instead of seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.pool import Pool

from benchmarks.storage.large_database import PAGES, RUN_ID, fill
from migrations.upgrade import upgrade
from models.database.connection import open_database
from tests.integration.producer.view.test_view import serving

#: Jobs of the database, and of the larger one.
FEW, MANY = 1_500, 6_000

STEPS_PER_CALL = 100


class Steps:
    """Counts the steps of all connections that are opened meanwhile, in hundreds."""

    def __init__(self) -> None:
        self.number = 0

    def _count(self) -> int:
        self.number += 1
        return 0

    def _connected(self, connection: Any, record: object) -> None:  # noqa: ARG002
        connection.set_progress_handler(self._count, STEPS_PER_CALL)

    @contextmanager
    def counted(self) -> Iterator[None]:
        event.listen(Pool, "connect", self._connected)
        try:
            yield
        finally:
            event.remove(Pool, "connect", self._connected)


def costs(database: Engine, num_jobs: int) -> dict[str, int]:
    """Page -> its steps, read once before."""
    paths = PAGES | {
        "last jobs": f"/runs/{RUN_ID}?after={num_jobs - 200}",
        "succeeded jobs": f"/runs/{RUN_ID}?after={num_jobs // 2}&state=succeeded",
    }
    steps, found = Steps(), {}
    with steps.counted(), serving(database) as reader:
        for name, path in paths.items():
            reader.ask(path)
            before = steps.number
            reader.ask(path)
            found[name] = steps.number - before
    return found


def test_a_page_costs_the_same_in_a_large_database(tmp_path: Path) -> None:
    found = []
    for num_jobs in (FEW, MANY):
        database = open_database(f"sqlite:///{tmp_path / f'{num_jobs}.db'}")
        upgrade(database)
        fill(database, num_jobs, 2)
        found.append(costs(database, num_jobs))
        database.dispose()
    few, many = found
    assert {name: steps for name, steps in many.items() if steps > 1.2 * few[name] + 20} == {}, few
    assert min(few.values()) >= 0 and max(few.values()) > 10  # steps were counted
