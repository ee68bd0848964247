"""Rows that bypass SQLAlchemy on their way in come back through it unchanged."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import DBAPIError

from models.database.bulk_insert import insert_rows, to_json
from models.database.clock import timestamp_value
from models.schema.job import Job
from tests.support.table_rows import RUN_ID, insert_run

COLUMNS = (
    "run_id", "custom_id", "prompt", "messages", "strategy", "params", "seed", "priority", "state", "attempts",
    "num_crashes", "is_suspect", "created_at", "expires_at",
)  # fmt: skip
TIMESTAMP = datetime(2026, 11, 24, 23, 59, 59, 123456, tzinfo=UTC)


def row_of(database: Engine, **changed: Any) -> list[Any]:
    with database.connect() as connection:
        at = timestamp_value(connection, TIMESTAMP)
    values = {
        "run_id": RUN_ID, "custom_id": "ü\t\\N\n😀", "prompt": None, "messages": json.dumps([{"role": "Ω"}]),
        "strategy": "greedy", "params": "{}", "seed": 2**63 - 1, "priority": 9, "state": "queued", "attempts": 0,
        "num_crashes": 2, "is_suspect": True, "created_at": at, "expires_at": None,
    }  # fmt: skip
    return [(values | changed)[name] for name in COLUMNS]


def test_every_kind_of_value_comes_back(database: Engine) -> None:
    insert_run(database, 1)
    with database.begin() as connection:
        insert_rows(connection, "jobs", COLUMNS, [row_of(database)])
        stored = connection.execute(select(Job.__table__).where(Job.priority == 9)).one()
    assert (stored.custom_id, stored.prompt, stored.messages) == ("ü\t\\N\n😀", None, [{"role": "Ω"}])
    assert (stored.seed, stored.priority, stored.num_crashes, stored.is_suspect) == (2**63 - 1, 9, 2, True)
    assert (stored.created_at, stored.expires_at, stored.params) == (TIMESTAMP, None, {})


def test_what_the_database_refuses_is_an_error_of_its_driver_and_writes_nothing(database: Engine) -> None:
    insert_run(database, 1)
    rows = [row_of(database), row_of(database, custom_id="other", run_id="there is none")]
    with pytest.raises(DBAPIError) as caught, database.begin() as connection:
        insert_rows(connection, "jobs", COLUMNS, rows)
    assert "foreign key" in str(caught.value.orig).lower()
    with database.begin() as connection:
        assert connection.execute(select(func.count()).select_from(Job)).scalar_one() == 1


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("a\0b\0\0", "a\ufffdb\ufffd\ufffd"),
        ("\\u0000", "\\u0000"),  # spelled, as an answer about JSON spells it
        ("\\\0", "\\\ufffd"),
        ("\\\\u0000\\\\\0", "\\\\u0000\\\\\ufffd"),
    ],
)
def test_json_loses_a_nul_and_keeps_one_that_is_spelled(text: str, stored: str) -> None:
    assert json.loads(to_json([{"text": text}])) == [{"text": stored}]
