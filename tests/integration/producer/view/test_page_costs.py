"""Pages and the live view cost no more in a large database, in steps of SQLite instead of seconds."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

from sqlalchemy import Engine, insert, literal, select

from benchmarks.storage.large_database import PAGES, RUN_ID, fill
from migrations.upgrade import upgrade
from models.database.connection import open_database
from models.schema.job import Job
from models.schema.job_event import JobEvent
from models.states import JobState
from producer.results.live import observer
from producer.results.live.observer import Observer
from tests.integration.producer.view.test_view import serving
from tests.support.sqlite_steps import Steps

#: Jobs of the database, and of the larger one.
FEW, MANY = 1_500, 6_000


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
        fresh = open_database(str(database.url))  # its connections count their steps
        before = steps.number
        with patch.object(observer, "EVENTS", FEW // 2), patch.object(Observer, "_whole_mean"):  # read once, at the end
            Observer(fresh, RUN_ID).look()
        found["a look of the live view"] = steps.number - before
        fresh.dispose()
    return found


def end_jobs(database: Engine) -> None:
    """Enters the end of each job, as the changes of states do."""
    ends = select(Job.id, Job.finished_at, literal(JobState.RUNNING), Job.state, literal(1))
    columns = ["job_id", "at", "from_state", "to_state", "attempt"]
    with database.begin() as connection:
        connection.execute(insert(JobEvent).from_select(columns, ends))


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
    assert max(few.values()) > 10  # steps were counted
