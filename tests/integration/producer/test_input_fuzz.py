"""Any file or flag leads to a message or to a submission, never to a traceback or half a submission."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, func, select

from models.schema.job import Job
from models.schema.tables import Base
from producer.errors import UsageError
from producer.prompts.grid import Grid, parse_option
from producer.prompts.job_drafts import Submission
from producer.prompts.readers.record import PARAMETER_FIELDS
from producer.prompts.records import ReaderOptions
from producer.prompts.validation import check
from producer.runs.writer import write

FIELDS = [*sorted(PARAMETER_FIELDS), "custom_id", "prompt", "messages", "priority", "url", "body", "method", "x"]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["greedy", "top:3", "POST"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
records = st.dictionaries(st.sampled_from(FIELDS), values, max_size=6)
lines = st.one_of(
    records.map(lambda record: json.dumps(record).encode()),
    st.fixed_dictionaries({"prompt": st.text(min_size=1)}).map(lambda record: json.dumps(record).encode()),
    st.binary(max_size=40).filter(lambda raw: b"\n" not in raw),
)


@pytest.fixture(scope="module")
def memory_database() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def submit(path: Path, grid: Grid, reader: ReaderOptions, database: Engine, skip_invalid: bool) -> None:
    """Either all jobs that were counted are written, or none is and there is a message."""

    def count() -> int:
        with database.connect() as connection:
            return connection.execute(select(func.count()).select_from(Job)).scalar_one()

    before = count()
    submission = Submission(path, "toy", grid, seed=1, reader=reader)
    try:
        checked = check(submission, skip_invalid=skip_invalid)
    except UsageError as error:
        assert str(error)
        assert count() == before
    else:
        write(submission, checked, database)
        assert count() == before + checked.num_jobs > before


@settings(max_examples=300)
@given(content=st.lists(lines, max_size=5), skip_invalid=st.booleans(), replace_nul=st.booleans())
def test_any_jsonl(memory_database: Engine, content: list[bytes], skip_invalid: bool, replace_nul: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(b"\n".join(content))
        submit(path, Grid({}), ReaderOptions(replace_nul=replace_nul), memory_database, skip_invalid)


@settings(max_examples=150)
@given(
    content=st.binary(max_size=200) | st.text(alphabet='prompt,"\n\r\t;x1', max_size=80).map(str.encode),
    format=st.sampled_from(["csv", "tsv", "text", "parquet", "jsonl"]),
    template=st.none() | st.text(alphabet="{}% prompt.x", max_size=20),
)
def test_any_table(memory_database: Engine, content: bytes, format: str, template: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.data"
        path.write_bytes(content)
        submit(path, Grid({}), ReaderOptions(format=format, template=template), memory_database, True)


@settings(max_examples=150)
@given(
    options=st.dictionaries(
        st.sampled_from([name for name in sorted(PARAMETER_FIELDS) if name != "stop"]),
        st.text(alphabet="0123456789.,-einfgrdysampluc", max_size=12),
        max_size=4,
    )
)
def test_any_flag(memory_database: Engine, options: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text('{"prompt": "x"}')
        try:
            grid: dict[str, list[Any]] = {name: parse_option(name, text) for name, text in options.items()}
        except UsageError as error:
            assert str(error)
            return
        submit(path, Grid(grid), ReaderOptions(), memory_database, False)
