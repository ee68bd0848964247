"""Statements whose rows, values or single steps are large: `producer sql` ends in its time, in memory for one row."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from models.database.connection import open_database
from producer.errors import UsageError
from producer.results.sql import statement
from producer.results.sql.statement import answer
from tests.support.table_rows import run_sql

MIB = 2**20

#: 200 rows of 4 MiB, on either database; they would be 800 MiB at once.
LARGE_ROWS = {
    "sqlite": "with recursive n(i) as (select 1 union all select i + 1 from n where i < 200) "
    "select hex(zeroblob(2097152)) from n",
    "postgresql": "select repeat('x', 4194304) from generate_series(1, 200)",
}


@pytest.fixture
def reader(database: Engine) -> Iterator[Engine]:
    engine = open_database(database.url.render_as_string(hide_password=False), read_only=True)
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite_reader(sqlite_database: Engine) -> Iterator[Engine]:
    engine = open_database(sqlite_database.url.render_as_string(hide_password=False), read_only=True)
    yield engine
    engine.dispose()


def test_large_rows_are_read_one_by_one(reader: Engine) -> None:
    tracemalloc.start()
    try:
        with answer(reader, LARGE_ROWS[reader.dialect.name]) as found:
            assert sum(len(value) == 4 * MIB for (value,) in found.rows) == 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * MIB


@pytest.mark.parametrize("num_rows", [0, 1, 999, 1000, 1001, 2000])
def test_no_row_is_lost_between_two_fetches(reader: Engine, num_rows: int) -> None:
    numbers = f"with recursive n(i) as (select 1 union all select i + 1 from n where i <= {num_rows}) "
    with answer(reader, f"{numbers} select i from n where i <= {num_rows}") as found:
        assert [i for (i,) in found.rows] == list(range(1, num_rows + 1))


def test_a_statement_of_slow_steps_ends_in_its_time(sqlite_reader: Engine) -> None:
    """Each row takes some ten steps and a good part of a second: a count of steps would see the end after minutes."""
    endless = "with recursive n(x) as (select randomblob(1 << 28) union all select randomblob(1 << 28) from n) "
    with pytest.raises(UsageError, match="takes longer than 0.5 s and was stopped"):
        with answer(sqlite_reader, f"{endless} select length(x) from n", 0.5):
            raise AssertionError


def test_a_row_of_large_columns_is_refused(sqlite_reader: Engine) -> None:
    columns = ", ".join(["zeroblob(1 << 28)"] * 20)
    with pytest.raises(UsageError, match="the statement needs more than 1,024 MiB of memory"):
        with answer(sqlite_reader, f"select {columns}"):
            raise AssertionError


def test_a_call_that_cannot_be_interrupted_is_not_waited_for(
    sqlite_reader: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`instr` compares half of the text at each of its places: here for a second, with larger ones for days."""
    monkeypatch.setattr(statement, "MARGIN_SECONDS", 0.05)
    search = "select instr(zeroblob(300000), cast(zeroblob(150000) || 'x' as blob))"
    with pytest.raises(UsageError, match="takes longer than 0.05 s and was stopped"):
        with answer(sqlite_reader, search, 0.05):
            raise AssertionError
    assert run_sql(sqlite_reader, "select 1")[1] == [(1,)]
