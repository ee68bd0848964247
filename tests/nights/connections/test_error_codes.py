"""Errors of the database by its own codes: what is waited out, what fails a job, what ends a worker by name.

A trigger of a real PostgreSQL raises any code at any operation of a worker.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import Engine, text, update
from sqlalchemy.exc import DBAPIError, OperationalError

import models.database.connection
import worker.runtime
from migrations.upgrade import upgrade
from models.database.clock import database_epoch
from models.database.connection import open_database
from models.database.error_codes import Verdict
from models.database.faults import is_unavailable, unavailable, verdict_on
from models.schema.job import Job
from models.schema.run import Run
from models.states import JobState, RunState
from tests.integration.worker.test_losses import running_worker
from tests.support.fake_engines import InstantEngine
from tests.support.postgres import new_postgres_database
from tests.support.processes import wait_until
from tests.support.table_rows import column_of, insert_run
from worker.storage import outages, reaper
from worker.storage.careful_claims import claim_carefully
from worker.storage.claims import Claim
from worker.storage.job_store import JobStore
from worker.storage.outages import DatabaseOutages

#: PostgreSQL's classes of codes with the single codes of each that matter, and the verdict on them.
POSTGRESQL_CODES = {
    Verdict.CONFLICT: "40000 40001 40P01 72000",
    Verdict.TIMEOUT: "55P03 57014",
    Verdict.OUTAGE: """
        08000 08001 08003 08004 08006 08007 08P01 25006 25P03 25P04 40003 53000 53100 53200 53300 53400
        55000 55006 57000 57P01 57P02 57P03 57P04 57P05 58000 58030 58P01 58P02
    """,
    Verdict.VALUES: """
        09000 20000 21000 22000 22001 22003 22021 22P02 22P05 23000 23502 23503 23505 23514 23P01 27000 2F002 38000
        39P01 40002 44000 54000 54001 54011 P0001 P0004 XX000
    """,
    Verdict.REJECTION: """
        03000 0A000 0B000 0F000 0L000 0P000 0Z000 24000 25000 25001 25P01 25P02 26000 28000 28P01 2B000 2D000 34000
        3B000 3D000 3F000 42000 42501 42601 42703 42883 42P01 42P07 55P02 55P04 F0000 HV000 XX001 XX002
    """,
}

#: The same for SQLite.
SQLITE_CODES = {
    Verdict.OUTAGE: """
        PERM BUSY BUSY_RECOVERY BUSY_SNAPSHOT LOCKED LOCKED_SHAREDCACHE NOMEM READONLY READONLY_CANTLOCK
        READONLY_RECOVERY READONLY_ROLLBACK READONLY_DIRECTORY READONLY_DBMOVED INTERRUPT IOERR IOERR_READ IOERR_FSYNC
        FULL CANTOPEN CANTOPEN_FULLPATH PROTOCOL SCHEMA
    """,
    Verdict.VALUES: "TOOBIG CONSTRAINT CONSTRAINT_UNIQUE CONSTRAINT_TRIGGER MISMATCH RANGE",
    Verdict.REJECTION: "ERROR INTERNAL ABORT CORRUPT CORRUPT_INDEX NOTFOUND EMPTY MISUSE NOLFS AUTH FORMAT NOTADB",
}

#: The operations of a worker that a trigger tells apart.
TRIGGERS = {
    "claim": "BEFORE UPDATE ON jobs FOR EACH ROW WHEN (OLD.state = 'queued' AND NEW.state = 'running')",
    "commit": "BEFORE UPDATE ON jobs FOR EACH ROW WHEN (NEW.state = 'succeeded')",
    "copy": "BEFORE INSERT ON results FOR EACH ROW",
    "heartbeat": "BEFORE UPDATE ON workers FOR EACH ROW WHEN (NEW.stopped_at IS NULL)",
    "lease": "BEFORE UPDATE ON jobs FOR EACH ROW WHEN (OLD.state = 'running' AND NEW.state = 'running')",
    "reaper": "BEFORE UPDATE ON jobs FOR EACH ROW WHEN (OLD.state = 'running' AND NEW.state = 'queued')",
    "outbox": "BEFORE UPDATE ON jobs FOR EACH ROW WHEN (OLD.sent_at IS NULL AND NEW.sent_at IS NOT NULL)",
}

FAULT = """
CREATE TABLE faults (operation text, code text);
CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE found_code text;
BEGIN
    SELECT code INTO found_code FROM faults WHERE operation = TG_ARGV[0];
    IF found_code IS NOT NULL THEN
        RAISE EXCEPTION 'a fault of the %%', TG_ARGV[0] USING ERRCODE = found_code;
    END IF;
    RETURN NEW;
END $$;
"""


@pytest.fixture(scope="module")
def faulty(postgres_server: str) -> Iterator[Engine]:
    """A database whose triggers raise the codes in its table `faults`."""
    with new_postgres_database(postgres_server) as url:
        engine = open_database(url)
        upgrade(engine)
        with engine.begin() as connection:
            connection.exec_driver_sql(FAULT)
            for operation, when in TRIGGERS.items():
                connection.exec_driver_sql(
                    f"CREATE TRIGGER fault_{operation} {when} EXECUTE FUNCTION fault('{operation}')"
                )
        yield engine
        engine.dispose()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "RETRY_SECONDS", (0.05,))
    monkeypatch.setattr(worker.runtime, "EngineSupervisor", InstantEngine)
    monkeypatch.setattr(reaper, "WATCHED_PART", 0.01)  # of a lease, until a worker counts as silent


def set_fault(database: Engine, operation: str | None = None, code: str = "") -> None:
    with database.begin() as connection:
        connection.execute(text("DELETE FROM faults"))
        if operation is not None:
            connection.execute(
                text("INSERT INTO faults VALUES (:operation, :code)"), {"operation": operation, "code": code}
            )


def empty(database: Engine) -> None:
    set_fault(database)
    with database.begin() as connection:
        connection.execute(text("TRUNCATE runs, workers CASCADE"))


def raised_by(database: Engine, statement: str) -> DBAPIError:
    with pytest.raises(DBAPIError) as raised, database.begin() as connection:
        connection.execute(text(statement))
    return raised.value


def test_each_code_of_postgresql_has_its_verdict(faulty: Engine) -> None:
    found: dict[Verdict, list[str]] = {verdict: [] for verdict in POSTGRESQL_CODES}
    for code in " ".join(POSTGRESQL_CODES.values()).split():
        error = raised_by(faulty, f"DO $$ BEGIN RAISE EXCEPTION 'a fault' USING ERRCODE = '{code}'; END $$")
        found[verdict_on(error)].append(code)
        if verdict_on(error) in (Verdict.CONFLICT, Verdict.TIMEOUT, Verdict.OUTAGE):
            assert is_unavailable(error), f"a command would end with a traceback at {code}"
    assert found == {verdict: codes.split() for verdict, codes in POSTGRESQL_CODES.items()}


def sqlite_error(name: str) -> OperationalError:
    error = sqlite3.OperationalError(name)
    error.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{name}")
    return OperationalError("update", {}, error)


def test_each_result_code_of_sqlite_has_its_verdict() -> None:
    found: dict[Verdict, list[str]] = {verdict: [] for verdict in SQLITE_CODES}
    for name in " ".join(SQLITE_CODES.values()).split():
        found[verdict_on(sqlite_error(name))].append(name)
    assert found == {verdict: names.split() for verdict, names in SQLITE_CODES.items()}


@pytest.mark.parametrize("may_write", [True, False])
def test_a_transaction_that_was_cut_off_is_told_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may_write: bool
) -> None:
    """Its journal is the way back: a reader that left it out would show rows that were never committed."""
    monkeypatch.setattr(models.database.connection, "_may_write", lambda _: may_write)
    writer = sqlite3.connect(tmp_path / "open.db", isolation_level=None)
    writer.executescript("PRAGMA cache_size=5; CREATE TABLE t (a); INSERT INTO t VALUES ('committed'); BEGIN")
    writer.executemany("INSERT INTO t VALUES (?)", [("x" * 3000,)] * 50)
    for ending in ("", "-journal"):
        shutil.copy(tmp_path / f"open.db{ending}", tmp_path / f"cut.db{ending}")
    writer.close()
    error = raised_by(open_database(f"sqlite:///{tmp_path}/cut.db", read_only=True), "SELECT count(*) FROM t")
    told = str(unavailable(error))
    assert "cut off in the middle of writing" in told and "sqlite3 FILE .tables" in told
    with closing(sqlite3.connect(tmp_path / "cut.db")) as advised:
        advised.execute("SELECT count(*) FROM t")
    with open_database(f"sqlite:///{tmp_path}/cut.db", read_only=True).connect() as connection:
        assert connection.execute(text("SELECT count(*), max(a) FROM t")).one() == (1, "committed")


@pytest.fixture
def may_claim(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """Claims wait for it: quick ones would leave the outbox no job to mark as sent."""
    event = Event()

    def claim_later(store: JobStore, outages: DatabaseOutages, job_ids: Sequence[int]) -> list[Claim]:
        event.wait()
        return claim_carefully(store, outages, job_ids)

    monkeypatch.setattr(worker.runtime, "claim_carefully", claim_later)
    event.set()
    yield event
    event.set()


def hold_claims(may_claim: Event, operation: str) -> None:
    if operation == "outbox":
        may_claim.clear()


def submit(database: Engine, model: str, operation: str) -> None:
    """Writes jobs that the sweep of a worker sends, with what the operation needs to happen."""
    run_id = f"run-{len(column_of(database, Run.id))}"
    prompt = "slow" if operation == "lease" else "Hello"
    ids = insert_run(database, 3, run_id=run_id, model=model, attempts=1, prompt=prompt)
    if operation == "reaper":
        lost = {"state": JobState.RUNNING, "worker": "gone", "lease_expires_at": database_epoch() - 100}
        with database.begin() as connection:
            connection.execute(update(Job).where(Job.id == ids[0]).values(lost))


def is_told(caplog: pytest.LogCaptureFixture) -> bool:
    return any("a fault of the" in line for line in messages(caplog))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert not [record for record in caplog.records if record.exc_info], "a traceback"
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


#: Each operation with codes that go away: told, waited out, forgotten.
PASSING = [
    *[("claim", code) for code in ("57P01", "53300", "40001", "55P03", "72000")],
    *[("commit", code) for code in ("53100", "40P01", "57014", "25P04")],
    ("copy", "58030"), ("heartbeat", "55006"), ("lease", "57P03"), ("outbox", "25006"), ("reaper", "08006"),
]  # fmt: skip


def test_a_code_that_goes_away_is_waited_out(
    faulty: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    may_claim: Event,
) -> None:
    """By one worker, one fault after the other; each is told once, and no job counts a loss of it."""
    empty(faulty)
    model = str(tmp_path / "starts")
    caplog.set_level(logging.WARNING)
    with running_worker(faulty, tmp_path, monkeypatch, max_attempts=3) as runtime:
        for operation, code in PASSING:
            caplog.clear()
            set_fault(faulty, operation, code)
            hold_claims(may_claim, operation)
            submit(faulty, model, operation)
            wait_until(lambda: is_told(caplog))
            may_claim.set()
            set_fault(faulty)
            wait_until(lambda: set(column_of(faulty, Run.state)) == {RunState.FINISHED})
            wait_until(lambda: runtime.state().is_database_available)  # a heartbeat is tried again after seconds
            told = [line for line in messages(caplog) if "a fault of the" in line]
            assert len(told) <= 3, told  # one for each thread that meets it
    assert set(column_of(faulty, Job.state)) == {JobState.SUCCEEDED}
    assert sum(column_of(faulty, Job.num_crashes)) == 1  # of the worker that was gone


#: Each operation with codes of a statement that can never succeed, whoever's values it has.
LASTING = [
    ("claim", "42501"), ("claim", "P0001"), ("commit", "0A000"), ("commit", "23505"), ("copy", "XX000"),
    ("copy", "XX001"), ("heartbeat", "42P01"), ("lease", "23514"), ("outbox", "25P02"), ("reaper", "22003"),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "code"), LASTING)
def test_a_code_that_stays_ends_the_worker_by_name(
    faulty: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    may_claim: Event,
    operation: str,
    code: str,
) -> None:
    """It is told once, without a traceback; no job fails or counts a loss."""
    empty(faulty)
    stops: list[str] = []
    monkeypatch.setattr(worker.runtime, "stop_this_process", lambda: stops.append("SIGTERM"))
    set_fault(faulty, operation, code)
    with running_worker(faulty, tmp_path, monkeypatch, max_attempts=3) as runtime:
        hold_claims(may_claim, operation)
        submit(faulty, str(tmp_path / "starts"), operation)
        wait_until(lambda: bool(stops))
        may_claim.set()
        assert runtime.is_stopping and runtime.rejection is not None and "a fault of the" in runtime.rejection
    assert stops == ["SIGTERM"]
    told = [line for line in messages(caplog) if "this worker gives its jobs back and ends" in line]
    assert len(told) == 1 and f"a fault of the {operation}" in told[0]
    assert JobState.FAILED not in column_of(faulty, Job.state)
    assert column_of(faulty, Job.num_crashes) == [0, 0, 0]
    assert JobState.RUNNING not in column_of(faulty, Job.state, Job.worker == "worker")
