"""The functions that reading connections to SQLite have: the same numbers as NumPy's, and errors with a sentence."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from models.database.connection import open_database
from producer.errors import UsageError
from tests.support.table_rows import run_sql

NUMBERS = st.lists(st.none() | st.floats(-1e6, 1e6) | st.integers(-1000, 1000), max_size=30)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tmp_path_factory.mktemp("functions") / "empty.db"
    sqlite3.connect(path).close()
    Path(path).touch()
    engine = open_database(f"sqlite:///{path}", read_only=True)
    yield engine
    engine.dispose()


def values_of(reader: Engine, expressions: str, values: list[float | None]) -> tuple[object, ...]:
    rows = " union all ".join(f"select {'null' if value is None else repr(value)}" for value in values)
    return run_sql(reader, f"with t(x) as ({rows or 'select null where 0'}) select {expressions} from t")[1][0]


@given(values=NUMBERS, percent=st.integers(0, 100))
def test_they_compute_what_numpy_does(reader: Engine, values: list[float | None], percent: int) -> None:
    found = values_of(reader, f"median(x), percentile(x, {percent}), stddev(x), stddev_pop(x), variance(x)", values)
    present = [value for value in values if value is not None]
    expected = (
        [numpy.median(present), numpy.percentile(present, percent)] if present else [None, None],
        [numpy.std(present, ddof=1)] if len(present) > 1 else [None],
        [numpy.std(present)] if present else [None],
        [numpy.var(present, ddof=1)] if len(present) > 1 else [None],
    )
    for ours, theirs in zip(found, [each for part in expected for each in part], strict=True):
        assert ours == (theirs if theirs is None else pytest.approx(theirs, rel=1e-9, abs=1e-6))


def test_a_large_mean_costs_no_digits(reader: Engine) -> None:
    assert values_of(reader, "stddev_samp(x)", [1e9 + 1, 1e9 + 2, 1e9 + 3]) == (1.0,)


@pytest.mark.parametrize(
    "call", ["median('a')", "stddev('1')", "percentile(1, 101)", "percentile(x, x)", "percentile(1, null)"]
)
def test_a_wrong_value_is_told_of(reader: Engine, call: str) -> None:
    with pytest.raises(UsageError, match="is not a number, or the percentile is not one number from 0 to 100"):
        values_of(reader, call, [1, 2])


@pytest.mark.parametrize(
    ("text", "verdict"), [("'{\"a\": 1}'", 1), ("'{'", 0), ("''", 0), ("null", None), ("x'00'", 0), ("1", 1)]
)
def test_is_json(reader: Engine, text: str, verdict: int | None) -> None:
    assert run_sql(reader, f"select is_json({text})")[1] == [(verdict,)]
