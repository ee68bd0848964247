"""The load of workers over time: rows while there is work, deleted with their runs, and the timeline made of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, func, insert, select, update

from models.schema.job import Job
from models.schema.job_event import JobEvent
from models.schema.run import Run
from models.schema.worker_sample import WorkerSample
from models.settings import Settings
from producer.results.report.timeline import NUM_BUCKETS, Timeline, timeline
from producer.runs.prune import prune_runs
from tests.support.table_rows import RUN_ID, column_of, insert_run
from worker.engine.stats import EngineStats, Stats
from worker.monitoring.counts import Count, Counts
from worker.storage.samples import SAMPLE_SECONDS, Samples

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)


def stats_of(num_tokens: int, running: int = 0, waiting: int = 0) -> Stats:
    counts = EngineStats(num_generated_tokens=num_tokens)
    return Stats(counts, num_running_sequences=running, num_waiting=waiting)


def test_a_worker_writes_a_row_some_ten_seconds_while_it_has_work(database: Engine) -> None:
    counts, now = Counts(), [0.0]
    samples = Samples(database, "w", "toy", counts, clock=lambda: now[0])

    def after(seconds: float, stats: Stats) -> bool:
        now[0] += seconds
        return samples.add(stats)

    assert not after(1, stats_of(50, 4))  # it is not time
    assert after(SAMPLE_SECONDS, stats_of(200, 4, 7))
    assert not after(SAMPLE_SECONDS - 1, stats_of(300, 4))
    counts.add(Count.REQUEST_FAILURE, 2, "x")
    counts.add(Count.ENGINE_DEATHS)
    assert after(2, stats_of(30, 1))  # another engine, which has counted from 0
    assert after(SAMPLE_SECONDS, stats_of(40))
    assert after(SAMPLE_SECONDS, stats_of(40))  # says that the work has ended
    assert not any(after(SAMPLE_SECONDS, stats_of(40)) for _ in range(5))
    assert after(SAMPLE_SECONDS, stats_of(41))
    names = (WorkerSample.seconds, WorkerSample.running, WorkerSample.waiting, WorkerSample.tokens)
    with database.connect() as connection:
        statement = select(*names, WorkerSample.failed, WorkerSample.restarts).order_by(WorkerSample.id)
        rows = [tuple(row) for row in connection.execute(statement)]
    assert rows == [
        (11, 4, 7, 200, 0, 0),
        (11, 1, 0, 30, 2, 1),
        (10, 0, 0, 10, 0, 0),
        (10, 0, 0, 0, 0, 0),
        (10, 0, 0, 1, 0, 0),
    ]
    age = datetime.now(UTC) - column_of(database, WorkerSample.at)[0]
    assert abs(age) < timedelta(minutes=30)


def add_sample(database: Engine, at: datetime, running: int = 5, model: str = "toy", seconds: float = 10.0) -> None:
    row = {"at": at, "seconds": seconds, "worker": "w", "model": model, "running": running, "waiting": 0, "tokens": 1}
    with database.begin() as connection:
        connection.execute(insert(WorkerSample).values(**row, failed=0, restarts=1))


def test_rows_are_deleted_with_the_last_run_of_their_time(
    sqlite_database: Engine, sqlite_url: str, tmp_path: Path
) -> None:
    settings, now = Settings(database=sqlite_url, home=tmp_path), datetime.now(UTC)
    days = {"old": 40, "kept": 20}
    for name, age in days.items():
        insert_run(sqlite_database, 1, run_id=name)
        with sqlite_database.begin() as connection:
            times = {"created_at": now - timedelta(days=age), "finished_at": now - timedelta(days=age - 1)}
            connection.execute(update(Run).where(Run.id == name).values(**times, state="finished"))
    for age in (39, 19, 0):
        add_sample(sqlite_database, now - timedelta(days=age), running=age)
    for older_than, traces_only, left in (
        ("30d", True, [39, 19, 0]),
        ("30d", False, [19, 0]),
        ("10d", False, [0]),  # no run is left, and the row is younger
        ("0.0001s", False, []),
    ):
        prune_runs(settings, older_than, traces_only=traces_only, is_dry=True, as_json=False)
        prune_runs(settings, older_than, traces_only=traces_only, is_dry=False, as_json=False)
        assert sorted(column_of(sqlite_database, WorkerSample.running), reverse=True) == left, older_than


#: Ends of samples in seconds, to a thousandth: a time of the database has no more than six places.
ENDS = st.integers(0, 3_600_000).map(lambda thousandths: thousandths / 1000)


@given(st.lists(st.tuples(ENDS, st.floats(0.1, 600), st.integers(0, 64)), max_size=20))
def test_the_timeline_has_all_seconds_of_all_sequences(loads: list[tuple[float, float, int]]) -> None:
    made = Timeline(BEGIN, BEGIN + timedelta(hours=1))
    wanted = 0.0
    for end, seconds, running in loads:
        made.add_sample(BEGIN + timedelta(seconds=end), seconds, running, 0)
        wanted += running * min(end, seconds)  # what lies before the run is not its own
    sequences = made.described(0)["sequences"]
    if not any(end for end, _, _ in loads):
        assert sequences is None
    else:
        last = max(end for end, _, _ in loads)
        assert [each is None for each in sequences] == [number * made.span >= last for number in range(NUM_BUCKETS)]
    assert sum(made.sequences) == pytest.approx(wanted, abs=1e-3)
    assert all(each >= 0 for each in made.sequences)


def test_a_run_has_the_load_of_its_models_workers_while_it_went_on(database: Engine) -> None:
    job_ids = insert_run(database, 2)
    for state in ("running", "succeeded"):
        with database.begin() as connection:
            connection.execute(update(Job).where(Job.id.in_(job_ids)).values(state=state, worker="w"))
    with database.begin() as connection:
        first = select(func.min(JobEvent.id)).scalar_subquery()
        earlier = datetime.now(UTC) - timedelta(hours=1)
        connection.execute(update(JobEvent).where(JobEvent.id == first).values(at=earlier))
    before = timeline(database, RUN_ID, 2)
    assert before is not None and before["sequences"] is None and len(before["running"]) == NUM_BUCKETS
    begin = datetime.fromisoformat(before["begin"])
    middle = begin + timedelta(seconds=before["span"] * NUM_BUCKETS / 2)
    add_sample(database, middle, seconds=3600.0)
    add_sample(database, middle, model="another", seconds=3600.0)
    add_sample(database, begin - timedelta(hours=1))
    found = timeline(database, RUN_ID, 2)
    assert found is not None and sum(found["restarts"]) == 1
    assert found["sequences"][0] == 5.0 and found["sequences"][-1] is None  # of which no sample tells


def test_a_run_of_some_seconds_has_no_curve_of_samples() -> None:
    made = Timeline(BEGIN, BEGIN + timedelta(seconds=30))
    made.add_sample(BEGIN + timedelta(seconds=9), 10, 4, 0)
    assert made.described(0)["sequences"] is None
