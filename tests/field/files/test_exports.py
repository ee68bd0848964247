"""Exports: any string survives every format and every reader, and columns have the types that their values have."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import csv as arrow_csv
from pyarrow import parquet
from sqlalchemy import Engine, delete, insert, update

from models.params import GenerationParams
from models.schema.job import Job
from models.schema.result import Result
from models.schema.run import Run
from models.settings import Settings
from models.states import Strategy
from producer.errors import UsageError
from producer.prompts.records import ReaderOptions, read_records
from producer.results.export import errors_path, export_results
from producer.results.parquet_file import JsonType
from tests.conftest import Producer
from tests.support.table_rows import RUN_ID, insert_run, output_of
from worker.storage.job_store import FinishedJob, JobStore

NASTY = [
    "", " ", "  padded  ", "plain", 'say "hi"', '"', '""', "'", "a,b", "a;b", "a\tb", "two\nlines", "dos\r\nlines",
    "\r", "a\rb", "\n", "\\", "\\n", '\\"', "NA", "N/A", "null", "NULL", "None", "nan", "NaN", "true", "True", "0",
    "007", "1.0", "1e5", "-1", "2020-01-01", "12:30", "=1+1", "+1", "-x", "@a", "#comment", "%", "\ufeffmark",
    "\u2028", "\u2029", "\x85", "\x0b\x0c", "\x1c\x1d\x1e", "\x01\x1b[2J", 
    "emoji 🦔 👩‍👩‍👧", "e\u0301", "日本語", "عربى",
    "{}", "[1, 2]", '{"a": 1}', "a" * 3000, "\U0010ffff", "\ufffd", "sep=;", "|", "`", "$x", "{{ x }}",
]  # fmt: skip
STRINGS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    NASTY
)


def table_of(database: Engine, texts: list[str]) -> None:
    """A run of one finished job a text, which is also its prompt and in its metadata."""
    with database.begin() as connection:
        connection.execute(delete(Run))
    for number, job_id in enumerate(insert_run(database, len(texts), state="succeeded", finished_at=datetime.now(UTC))):
        text = texts[number]
        with database.begin() as connection:
            values = {"prompt": text or "empty", "metadata_": {"note": text}, "error": text}
            connection.execute(update(Job).where(Job.id == job_id).values(**values))
            row = {"job_id": job_id, "sample_index": 0, "text": text, "finish_reason": "eos", "prompt_tokens": 1}
            times = {"queued_seconds": 0.0, "prefill_seconds": 0.1, "decode_seconds": 1e-7}
            connection.execute(insert(Result).values(completion_tokens=2, cumulative_logprob=-0.1, **row, **times))


def export(database: Engine, output: Path, **options: Any) -> None:
    url = database.url.render_as_string(hide_password=False)
    export_results(Settings(database=url), RUN_ID, options.pop("format", None), output, **options)


def duckdb_rows(query: str) -> list[Any]:
    relation = duckdb.sql(query)
    assert relation is not None
    return list(relation.fetchall())


def csv_module(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def csv_pandas(path: Path) -> list[str]:
    return list(pandas.read_csv(path, dtype=str, keep_default_na=False)["text"])


def csv_pyarrow(path: Path) -> list[str]:
    parsing = arrow_csv.ParseOptions(newlines_in_values=True)
    converting = arrow_csv.ConvertOptions(include_columns=["text"], column_types={"text": pyarrow.string()})
    return list(arrow_csv.read_csv(path, parse_options=parsing, convert_options=converting)["text"].to_pylist())


def csv_duckdb(path: Path) -> list[str]:
    options = "header=true, all_varchar=true, delim=',', quote='\"', escape='\"', nullstr=''"
    return [text for (text,) in duckdb_rows(f"select coalesce(text, '') from read_csv('{path}', {options})")]


def csv_ours(path: Path) -> list[str]:
    return [str(record.fields["text"]) for record in read_records(path, ReaderOptions(prompt_column="text"))]


def json_module(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").split("\n") if line]


def json_pandas(path: Path) -> list[str]:
    return list(pandas.read_json(path, lines=True, dtype=False)["text"])


def json_duckdb(path: Path) -> list[str]:
    return [text for (text,) in duckdb_rows(f"select text from read_json('{path}', columns={{text: 'VARCHAR'}})")]


def parquet_pyarrow(path: Path) -> list[str]:
    return list(parquet.read_table(path)["text"].to_pylist())


def parquet_pandas(path: Path) -> list[str]:
    return list(pandas.read_parquet(path)["text"])


def parquet_duckdb(path: Path) -> list[str]:
    return [text for (text,) in duckdb_rows(f"select text from '{path}'")]


READERS: dict[str, list[Callable[[Path], list[str]]]] = {
    "r.csv": [csv_module, csv_pandas, csv_pyarrow, csv_duckdb],
    "r.jsonl": [json_module, json_pandas, json_duckdb],
    "r.parquet": [parquet_pyarrow, parquet_pandas, parquet_duckdb],
}


@pytest.mark.parametrize(
    ("name", "reader"), [(name, reader) for name, readers in READERS.items() for reader in readers]
)
def test_every_reader_has_every_string_back(
    sqlite_database: Engine, tmp_path: Path, name: str, reader: Callable[[Path], list[str]]
) -> None:
    table_of(sqlite_database, NASTY)
    export(sqlite_database, tmp_path / name)
    assert reader(tmp_path / name) == NASTY


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(STRINGS, min_size=1, max_size=12))
def test_any_strings_survive(sqlite_database: Engine, tmp_path: Path, texts: list[str]) -> None:
    table_of(sqlite_database, texts)
    for name, readers in READERS.items():
        export(sqlite_database, tmp_path / name)
        for reader in readers:
            assert reader(tmp_path / name) == texts, reader.__name__
    notes = parquet.read_table(tmp_path / "r.parquet")["metadata"].to_pylist()
    assert [note["note"] for note in notes] == texts


def test_an_export_is_a_prompt_file_again(sqlite_database: Engine, tmp_path: Path) -> None:
    texts = [text for text in NASTY if text]
    table_of(sqlite_database, texts)
    for name in READERS:
        export(sqlite_database, tmp_path / name)
        found = list(read_records(tmp_path / name, ReaderOptions(prompt_column="text", metadata_columns=())))
        assert [record.fields["prompt"] for record in found] == texts, name


@pytest.fixture
def mixed(database: Engine) -> Engine:
    """Jobs of two strategies, a chat, and metadata whose shapes differ; one has failed."""
    job_ids = insert_run(database, 4)
    greedy, sample = (
        GenerationParams(),
        GenerationParams(strategy=Strategy.SAMPLE, temperature=0.5, top_k=3, stop=("a", "b")),
    )
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "name": "bot"}]
    changes: list[dict[str, Any]] = [
        {"params": greedy.stored, "metadata_": {"user": {"age": 3}, "tags": ["x", "y"], "n": 1, "any": 1}},
        {"params": sample.stored, "strategy": "sample", "metadata_": {"user": {"name": "Ann"}, "n": 1.5, "any": "a"}},
        {"params": sample.stored, "strategy": "sample", "prompt": None, "messages": chat, "metadata_": {"any": [2]}},
        {"params": sample.stored, "strategy": "sample", "metadata_": {"empty": {}, "none": None, "big": 2**70}},
    ]
    with database.begin() as connection:
        for job_id, values in zip(job_ids, changes, strict=True):
            connection.execute(update(Job).where(Job.id == job_id).values(**values))
    store = JobStore(database, "worker", 30.0)
    claims = store.claim(job_ids)
    store.commit([FinishedJob(claim, output_of(claim.job_id, samples=2)) for claim in claims[:3]])
    store.fail(claims[3], "EngineDied", "why")
    return database


def test_nested_columns_are_nested(mixed: Engine, tmp_path: Path) -> None:
    export(mixed, tmp_path / "r.parquet", with_traces=True)
    table = parquet.read_table(tmp_path / "r.parquet")
    rows = table.to_pylist()
    assert rows[0]["metadata"] == {
        "user": {"age": 3, "name": None}, "tags": ["x", "y"], "n": 1.0, "any": "1", "empty": None, "none": None,
        "big": None,
    }  # fmt: skip
    assert rows[2]["metadata"]["user"] == {"age": None, "name": "Ann"} and rows[2]["metadata"]["n"] == 1.5
    assert [row["metadata"]["any"] for row in rows[::2]] == ["1", "a", "[2]", None]
    assert (rows[6]["metadata"]["empty"], rows[6]["metadata"]["big"]) == ("{}", str(2**70))
    assert rows[4]["messages"][1] == {"role": "assistant", "content": "Yo", "name": "bot"} and rows[4]["prompt"] is None
    assert pyarrow.types.is_struct(table.schema.field("params").type)
    assert [token["position"] for token in rows[0]["trace"]] == [0, 1, 2]
    assert rows[0]["trace"][0]["top_logprobs"][0]["logprob"] == -0.5 and rows[6]["trace"] is None
    found = duckdb_rows(f"select metadata.user.name, trace[1].logprob from '{tmp_path / 'r.parquet'}'")
    assert found[2] == ("Ann", -0.5)


def test_prompts_the_model_and_parameters_that_differ_are_columns(mixed: Engine, tmp_path: Path) -> None:
    for name in READERS:
        export(mixed, tmp_path / name)
    (from_json, *_) = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()]
    names = list(from_json)
    assert (tmp_path / "r.csv").read_text(encoding="utf-8").splitlines()[0].split(",") == names
    assert parquet.read_schema(tmp_path / "r.parquet").names == names
    assert {"prompt", "messages", "model", "params", "temperature", "top_k", "stop"} <= set(names)
    assert "max_new_tokens" not in names  # the same for all: in params
    frame = pandas.read_csv(tmp_path / "r.csv", keep_default_na=False, dtype=str)
    assert list(frame["temperature"]) == ["", "", "0.5", "0.5", "0.5", "0.5", "0.5"]
    assert list(frame["stop"])[1:3] == ["[]", '["a", "b"]'] and set(frame["model"]) == {"toy"}
    assert json.loads(frame["messages"][4])[0] == {"role": "user", "content": "Hi"} and frame["prompt"][4] == ""
    rows = parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert (rows[2]["temperature"], rows[2]["top_k"], rows[2]["stop"]) == (0.5, 3, ["a", "b"])


FORMATS: list[tuple[str, str | None, bytes]] = [
    ("r.csv", None, b"run_id,"), ("r.CSV", None, b"run_id,"), ("r.parquet", None, b"PAR1"),
    ("r.jsonl", None, b'{"run_id"'), ("r.ndjson", None, b'{"run_id"'), ("r.csv", "jsonl", b'{"run_id"'),
    ("r", "csv", b"run_id,"), ("r.jsonl", "parquet", b"PAR1"), ("r.out", "openai", b'{"id"'),
]  # fmt: skip


def test_the_format_is_that_of_the_name_unless_it_is_named(sqlite_database: Engine, tmp_path: Path) -> None:
    table_of(sqlite_database, ["a"])
    for name, format, first in FORMATS:
        export(sqlite_database, tmp_path / name, format=format)
        assert (tmp_path / name).read_bytes().startswith(first), (name, format)


def test_a_name_that_says_no_format_is_refused(sqlite_database: Engine, tmp_path: Path) -> None:
    for name in ("r", "r.txt", "r.json", "r.csv.gz", "r.xlsx"):
        with pytest.raises(UsageError, match=r"by its name: end it in .jsonl, .*, or give --format"):
            export(sqlite_database, tmp_path / name)
    assert not list(tmp_path.glob("r*"))


def test_the_command_says_how_many_rows_went_where(producer: Producer, sqlite_database: Engine, tmp_path: Path) -> None:
    table_of(sqlite_database, ["a", "b", "c"])
    at = ("--database", sqlite_database.url.render_as_string())
    assert producer("results", *at, "-o", "r.csv").stderr == "3 rows written to r.csv\n"
    assert producer("results", *at).stderr == "3 rows written to stdout\n"
    assert producer("results", *at, "-o", "r.jsonl", "--format", "openai").stderr == "3 answers written to r.jsonl\n"
    assert len(csv_module(tmp_path / "r.csv")) == 3


def test_a_null_is_an_empty_cell_and_an_empty_text_a_quoted_one(mixed: Engine, tmp_path: Path) -> None:
    export(mixed, tmp_path / "r.csv")
    found = duckdb_rows(
        f"select text is null, prompt is null from read_csv('{tmp_path / 'r.csv'}', header=true, all_varchar=true)"
    )
    assert found[6] == (True, False) and found[4] == (False, True)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60)
@given(values=st.lists(JSON, min_size=1, max_size=5))
def test_values_of_any_shapes_share_a_type(values: list[Any]) -> None:
    kind = JsonType()
    for value in values:
        kind.see(value)
    column = pyarrow.array([kind.fit(value) for value in values], kind.arrow())
    buffer = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({"x": column}), buffer)
    found = parquet.read_table(pyarrow.BufferReader(buffer.getvalue()))["x"].to_pylist()
    assert [_same(value, back) for value, back in zip(values, found, strict=True)] == [True] * len(values)


@pytest.mark.parametrize(
    "values",
    [[{"a": {"": 1, "b": 2}}], [{"Topic": 1, "topic": 2}], [{"Topic": 1}, {"topic": 2}], [{"a": [{"X": 1}, {"x": 2}]}]],
)
def test_keys_that_some_reader_takes_for_one_are_text(values: list[Any], tmp_path: Path) -> None:
    """DuckDB reads no column without a name, and the same one for two that differ in case."""
    kind = JsonType()
    for value in values:
        kind.see(value)
    column = pyarrow.array([kind.fit(value) for value in values], kind.arrow())
    parquet.write_table(pyarrow.table({"x": column}), tmp_path / "x.parquet")
    for found in (duckdb_rows(f"select x from '{tmp_path / 'x.parquet'}'"), zip(column.to_pylist(), strict=True)):
        assert [_same(value, back) for value, (back,) in zip(values, found, strict=True)] == [True] * len(values)


def _same(value: Any, back: Any) -> bool:
    """Whether nothing is lost: nulls of an object may be absent, and what has no type in common is text."""
    if isinstance(back, str) and not isinstance(value, str):
        return bool(json.loads(back) == value)
    if isinstance(value, dict) and isinstance(back, dict):
        return all(_same(value.get(key), back[key]) for key in back) and all(
            key in back for key, inner in value.items() if inner is not None
        )
    if isinstance(value, list) and isinstance(back, list):
        return len(value) == len(back) and all(map(_same, value, back))
    return bool(value == back)


def test_openai_lines_are_told_of_too(mixed: Engine, tmp_path: Path) -> None:
    export(mixed, tmp_path / "r.jsonl", format="openai")
    answers = (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()
    errors = (tmp_path / "r.errors.jsonl").read_text(encoding="utf-8").splitlines()
    assert (len(answers), len(errors)) == (3, 1)


def test_no_file_of_errors_lies_beside_a_pipe(mixed: Engine, tmp_path: Path) -> None:
    """`-o /dev/stdout` had made `/dev/stdout.errors` where root ran it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    before = set(tmp_path.iterdir())
    with ThreadPoolExecutor() as pool:
        lines = pool.submit(lambda: pipe.read_text(encoding="utf-8").splitlines())
        export(mixed, pipe, format="openai")
        assert len(lines.result()) == 3
    assert set(tmp_path.iterdir()) == before
    assert errors_path(Path("/dev/stdout")) is errors_path(Path("/dev/fd/1")) is errors_path(None) is None
    assert errors_path(tmp_path / "new.jsonl") == tmp_path / "new.errors.jsonl"
