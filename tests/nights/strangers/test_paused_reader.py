"""A reader that stops in the middle holds nothing: no transaction, and no part of SQLite's write-ahead log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select

from models.database.connection import empty_journal, open_database
from models.schema.job import Job
from models.schema.result import Result
from producer.errors import UsageError
from producer.results import queries
from producer.results.queries import results
from producer.results.selection import Selection
from producer.results.sql.spool import Spool
from producer.results.sql.statement import answer
from tests.support.processes import wait_until
from tests.support.table_rows import RUN_ID, insert_run, output_of
from worker.storage.job_store import FinishedJob, JobStore


@pytest.fixture
def filled(database: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Seven jobs of which five have two answers each, read three jobs at a time."""
    job_ids = insert_run(database, 7)
    insert_run(database, 2, run_id="another")
    store = JobStore(database, "worker", 30.0)
    claims = store.claim(job_ids[:6])
    store.commit([FinishedJob(claim, output_of(claim.job_id, samples=2)) for claim in claims[:5]])
    store.fail(claims[5], "EngineDied", "why")
    monkeypatch.setattr(queries, "JOBS_PER_PAGE", 3)
    monkeypatch.setattr(queries, "TRACES_PER_FETCH", 7)
    return database


@pytest.fixture
def reader(filled: Engine) -> Any:
    engine = open_database(filled.url.render_as_string(hide_password=False), read_only=True)
    yield engine
    engine.dispose()


def open_transactions(database: Engine) -> int:
    """PostgreSQL's sessions beside this one that are in a transaction."""
    with database.connect() as connection:
        found = connection.exec_driver_sql(
            "select count(*) from pg_stat_activity where datname = current_database() and xact_start is not null "
            "and pid <> pg_backend_pid() and backend_type = 'client backend'"
        ).scalar()
    return int(found or 0)


def is_journal_free(database: Engine) -> bool:
    """Whether all of the write-ahead log can be moved into the file: a reader of older rows keeps a part."""
    with database.connect() as connection:
        connection.exec_driver_sql("commit")
        busy, _, _ = connection.exec_driver_sql("pragma wal_checkpoint(truncate)").one()
        connection.exec_driver_sql("begin")
    return not busy


def holds_nothing(database: Engine) -> bool:
    return is_journal_free(database) if database.dialect.name == "sqlite" else open_transactions(database) == 0


@pytest.mark.parametrize("with_traces", [False, True])
def test_pages_are_the_whole_and_hold_nothing_in_between(filled: Engine, reader: Engine, with_traces: bool) -> None:
    found = []
    for row in results(reader, RUN_ID, with_traces=with_traces):
        found.append((row["custom_id"], row["sample_index"]))
        if len(found) in (1, 7):
            wait_until(lambda: holds_nothing(filled))
        assert not with_traces or row["trace"] is None or len(row["trace"]) == row["completion_tokens"]
    answered = [(f"job-{number}", sample) for number in range(5) for sample in (0, 1)]
    assert found == [*answered, ("job-5", None), ("job-6", None)]


def test_pages_of_a_selection(reader: Engine) -> None:
    def ids(**selection: Any) -> list[str]:
        return [row["custom_id"] for row in results(reader, RUN_ID, Selection(**selection))]

    assert ids(states=("failed",)) == ["job-5"]
    assert ids(states=("queued", "failed")) == ["job-5", "job-6"]
    assert ids(strategies=("beam",)) == []
    assert len(ids(states=("succeeded",), strategies=("greedy",))) == 10


def test_the_rows_of_a_statement_hold_nothing_while_they_are_looked_at(filled: Engine, reader: Engine) -> None:
    with answer(reader, "select custom_id from jobs order by id") as found:
        rows = iter(found.rows)
        assert next(rows) == ("job-0",)
        wait_until(lambda: holds_nothing(filled))  # a server sees the end of a session a moment after its client
        assert len([*rows]) == 8


def test_a_paused_reader_lets_the_journal_be_cut(sqlite_database: Engine, sqlite_url: str) -> None:
    journal = Path(f"{sqlite_database.url.database}-wal")
    insert_run(sqlite_database, 300)
    reader = open_database(sqlite_url, read_only=True)
    rows = results(reader, RUN_ID)
    next(rows)
    with sqlite_database.begin() as connection:
        ids = connection.execute(select(Job.id)).scalars().all()
        row = {
            "sample_index": 0, "text": "x" * 4_000, "finish_reason": "eos", "prompt_tokens": 1, "completion_tokens": 1,
            "cumulative_logprob": 0.0, "queued_seconds": 0.0, "prefill_seconds": 0.0, "decode_seconds": 0.0,
        }  # fmt: skip
        connection.execute(insert(Result), [{"job_id": each, **row} for each in ids])
    assert journal.stat().st_size > 2**20
    empty_journal(sqlite_database)
    assert journal.stat().st_size == 0
    assert len(list(rows)) == 299
    reader.dispose()


def test_a_spool_is_read_again_and_says_when_the_disk_is_full() -> None:
    with Spool() as spool:
        spool.extend((number, None, "x" * 100, b"y") for number in range(1_000))
        assert [row[0] for row in spool] == [row[0] for row in spool] == list(range(1_000))
        spool._file.close()
        spool._file = open("/dev/full", "wb")  # noqa: SIM115
        with pytest.raises(
            UsageError, match="cannot keep the rows in .*: No space left on device; name another folder"
        ):
            spool.extend([("x" * 100_000,)])
