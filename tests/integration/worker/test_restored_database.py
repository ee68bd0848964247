"""A database that is read-only while a worker starts, or put back from a copy while it works: its rows are entered."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from sqlalchemy import Engine, delete, update
from sqlalchemy.exc import OperationalError

from models.schema.job import Job
from models.schema.result import Environment, Result
from models.schema.run import Run
from models.schema.worker import Worker
from models.states import JobState, RunState
from tests.integration.worker.test_losses import running_worker
from tests.support.fake_engines import ENVIRONMENT
from tests.support.processes import wait_until
from tests.support.table_rows import column_of, insert_run
from worker.storage.registry import Registry

ENTER = Registry.enter_environment


def test_a_worker_whose_rows_are_gone_enters_them_again(
    database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No job fails of it: each result refers to the environment's row."""
    model = str(tmp_path / "starts")
    with running_worker(database, tmp_path, monkeypatch, max_attempts=3):
        with database.begin() as connection:
            connection.execute(delete(Environment))
            connection.execute(delete(Worker))
        insert_run(database, 5, model=model)
        with database.begin() as connection:  # as jobs whose submitter has gone
            connection.execute(update(Job).values(attempts=1))
        wait_until(lambda: column_of(database, Run.state) == [RunState.FINISHED])
        assert column_of(database, Job.state) == [JobState.SUCCEEDED] * 5
        (environment,) = column_of(database, Environment.id)
        assert set(column_of(database, Result.environment_id)) == {environment}
        wait_until(lambda: column_of(database, Worker.name) == ["worker"])


def test_a_worker_that_starts_in_an_outage_waits_for_its_end(
    sqlite_database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its model is loaded: to end would mean to load it again."""
    failures = iter([sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL])

    def enter(self: Registry, environment: dict[str, Any]) -> str:
        for code in failures:
            error = sqlite3.OperationalError("not now")
            error.sqlite_errorcode = code
            raise OperationalError("insert", {}, error)
        return ENTER(self, environment)

    with patch.object(Registry, "enter_environment", enter):
        with running_worker(sqlite_database, tmp_path, monkeypatch, max_attempts=3):
            assert column_of(sqlite_database, Worker.name) == ["worker"]
    assert column_of(sqlite_database, Environment.model) == [ENVIRONMENT["model"]]
    assert next(failures, None) is None
