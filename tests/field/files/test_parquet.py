"""Parquet columns of any type: the value becomes what JSON has or its text, or the row is named; never a traceback."""

from __future__ import annotations

import json
import tempfile
import uuid
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from producer.errors import UsageError
from producer.options import DecodingOptions
from producer.prompts.job_drafts import Submission
from producer.prompts.readers.parquet_pages import pages
from producer.prompts.readers.parquet_records import json_value
from producer.prompts.readers.text_lines import TOO_LONG
from producer.prompts.records import ReaderOptions, Record, read_records
from producer.prompts.validation import check, write_invalid


def records_of(folder: Path, columns: dict[str, Any], **options: Any) -> list[Record]:
    path = folder / "a.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    return list(read_records(path, ReaderOptions(**options)))


def value_of(folder: Path, column: pyarrow.Array) -> Any:
    (record,) = records_of(folder, {"prompt": ["x"], "value": column})
    assert record.problem is None, record.problem
    json.dumps(record.fields)
    return record.fields.get("value")


def array(value: Any, kind: Any) -> pyarrow.Array:
    return pyarrow.array([value], kind)


BERLIN = pyarrow.timestamp("s", tz="Europe/Berlin")
NEW_YORK = pyarrow.timestamp("ns", tz="America/New_York")

VALUES: list[tuple[pyarrow.Array, Any]] = [
    (array(7, pyarrow.uint64()), 7),
    (array(2**64 - 1, pyarrow.uint64()), 2**64 - 1),
    (array(True, pyarrow.bool_()), True),
    (array(None, pyarrow.null()), None),
    (array(float("nan"), pyarrow.float64()), None),
    (array("é", pyarrow.large_string()), "é"),
    (array("é", pyarrow.string_view()), "é"),
    (array(Decimal("1.50"), pyarrow.decimal128(5, 2)), 1.5),
    (array(Decimal("12345678901234567890.123"), pyarrow.decimal256(40, 3)), "12345678901234567890.123"),
    (array(Decimal(2**60 + 1), pyarrow.decimal128(38, 0)), 2**60 + 1),  # a bigint of Spark's or Snowflake's
    (array(date(2026, 11, 26), pyarrow.date32()), "2026-11-26"),
    (array(2**31 - 1, pyarrow.int32()).cast(pyarrow.date32()), "5881580-07-11"),
    (array(-(2**31) + 1, pyarrow.int32()).cast(pyarrow.date32()), "-5877641-06-24"),
    (array(datetime(2026, 11, 26, 1, 2, 3), pyarrow.timestamp("s")), "2026-11-26T01:02:03"),
    (array(1, pyarrow.int64()).cast(pyarrow.timestamp("ns")), "1970-01-01T00:00:00.000000001"),
    (array(1700000000123456789, pyarrow.int64()).cast(NEW_YORK), "2023-11-14T17:13:20.123456789-05:00"),
    (array(1700000000000000000, pyarrow.int64()).cast(NEW_YORK), "2023-11-14T17:13:20-05:00"),
    (array(-(2**63), pyarrow.int64()).cast(pyarrow.timestamp("us", tz="UTC")), "-290308-12-21T19:59:05.224192+00:00"),
    (array(2**62, pyarrow.int64()).cast(pyarrow.timestamp("us")), "148108-07-06T14:00:27.387904"),
    (array(datetime(2026, 11, 26, tzinfo=UTC), BERLIN), "2026-11-26T01:00:00+01:00"),
    (array(time(1, 2, 3, 4), pyarrow.time64("us")), "01:02:03.000004"),
    (array(-5, pyarrow.int64()).cast(pyarrow.time64("us")), "-PT0.000005S"),  # a time of no day
    (array(timedelta(days=1, seconds=2), pyarrow.duration("ms")), "PT86402S"),
    (pyarrow.array(["a"]).dictionary_encode(), "a"),
    (array([1, None, 3], pyarrow.list_(pyarrow.int64())), [1, None, 3]),
    (array([[["a"]]], pyarrow.list_(pyarrow.list_(pyarrow.list_(pyarrow.string())))), [[["a"]]]),
    (array([1.5, 2.5], pyarrow.list_(pyarrow.float32(), 2)), [1.5, 2.5]),
    (array({"a": 1, "b": None}, pyarrow.struct({"a": pyarrow.int8(), "b": pyarrow.string()})), {"a": 1}),
    (array([("k", 1)], pyarrow.map_(pyarrow.string(), pyarrow.int64())), {"k": 1}),
    (array([(1, "v")], pyarrow.map_(pyarrow.int64(), pyarrow.string())), [[1, "v"]]),
    (
        array([{"at": date(2026, 1, 2)}], pyarrow.list_(pyarrow.struct({"at": pyarrow.date32()}))),
        [{"at": "2026-01-02"}],
    ),
    (
        pyarrow.ExtensionArray.from_storage(pyarrow.uuid(), array(uuid.UUID(int=5).bytes, pyarrow.binary(16))),
        str(uuid.UUID(int=5)),
    ),
    (pyarrow.ExtensionArray.from_storage(pyarrow.json_(), array('{"a": 1}', pyarrow.string())), '{"a": 1}'),
]


@pytest.mark.parametrize(("column", "value"), VALUES, ids=[str(column.type) for column, _ in VALUES])
def test_a_value_becomes_what_json_has_or_its_text(tmp_path: Path, column: pyarrow.Array, value: Any) -> None:
    assert value_of(tmp_path, column) == value


def not_utf8(*values: bytes) -> pyarrow.Array:
    offsets, data = [0], b""
    for value in values:
        data += value
        offsets.append(len(data))
    buffers = [None, pyarrow.py_buffer(pyarrow.array(offsets, pyarrow.int32()).buffers()[1]), pyarrow.py_buffer(data)]
    return pyarrow.Array.from_buffers(pyarrow.string(), len(values), buffers)


BAD: list[tuple[pyarrow.Array, str]] = [
    (not_utf8(b"fine", b"a\xff"), r"value is not UTF-8 \(byte 2\)"),
    (pyarrow.array([None, b"\x00\x01"], pyarrow.binary()), r"value is binary \(2 bytes\); cast the column"),
    (pyarrow.array([None, [b"\x00"]], pyarrow.list_(pyarrow.binary())), r"value is binary"),
    (pyarrow.array([None, {"a": b"\xff"}], pyarrow.struct({"a": pyarrow.large_binary()})), r"value is binary"),
]


@pytest.mark.parametrize(("column", "message"), BAD, ids=[str(column.type) for column, _ in BAD])
def test_a_value_that_has_no_text_names_its_row_alone(tmp_path: Path, column: pyarrow.Array, message: str) -> None:
    first, second = records_of(tmp_path, {"prompt": ["x", "y"], "value": column})
    assert first.problem is None and second.number == 2
    with pytest.raises(Exception, match=message):
        raise second.problem or AssertionError(second.fields)


def test_a_bad_row_ends_the_command_or_is_left_out(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["x", "y", "z"], "note": not_utf8(b"a", b"\xff", b"c")})
    parquet.write_table(table, tmp_path / "a.parquet")
    submission = Submission(tmp_path / "a.parquet", "m", DecodingOptions().grid())
    with pytest.raises(
        UsageError, match=r"a.parquet:2: note is not UTF-8(.|\n)*--skip-invalid submits the other 2 jobs"
    ):
        check(submission)
    report = check(submission, skip_invalid=True)
    assert (report.num_jobs, report.num_invalid) == (2, 1)
    (line,) = write_invalid(submission, report).read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["line"] == 2


def test_metadata_columns_reads_no_other_column(tmp_path: Path) -> None:
    columns = {"prompt": ["x"], "good": ["a"], "bad": pyarrow.array([b"\xff"], pyarrow.binary())}
    assert records_of(tmp_path, columns)[0].problem is not None
    (record,) = records_of(tmp_path, columns, metadata_columns=("good",))
    assert record.problem is None and record.fields == {"prompt": "x", "good": "a"}
    (record,) = records_of(tmp_path, columns, metadata_columns=())
    assert record.fields == {"prompt": "x"}
    with pytest.raises(UsageError, match="--metadata-columns names 'none', and the columns are prompt, good, bad"):
        records_of(tmp_path, columns, metadata_columns=("none",))


@settings(max_examples=60)
@given(value=st.integers(-(2**63), 2**63 - 1), unit=st.sampled_from(["ms", "us", "ns"]))
def test_a_timestamp_is_its_own_moment_with_and_without_pandas(value: int, unit: Literal["ms", "us", "ns"]) -> None:
    """pyarrow makes a type of pandas' of nanoseconds where that is installed, and nothing where it is not."""
    scalar = pyarrow.scalar(value, pyarrow.int64()).cast(pyarrow.timestamp(unit))
    text = json_value("at", scalar)
    assert isinstance(text, str) and "NaT" not in text
    if value != -(2**63):  # NaT to numpy
        assert numpy.datetime64(text, unit).astype(numpy.int64) == value


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_texts_of_any_encoding_are_read(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB's and Spark's second version of the format writes deltas, which Arrow reads into no dictionary."""
    sizes: list[int] = []

    def small_parts(batch: Any) -> list[Any]:
        sizes.append(batch.num_rows)
        return [batch]

    monkeypatch.setattr("producer.prompts.readers.parquet_records._small_parts", small_parts)
    texts = [f"prompt {number}" for number in range(40)] + [None]
    table = pyarrow.table({"prompt": texts, "note": ["a"] * 41})
    columns = {"prompt": encoding, "note": "PLAIN"}
    parquet.write_table(table, tmp_path / "a.parquet", use_dictionary=False, column_encoding=columns)
    found = list(read_records(tmp_path / "a.parquet", ReaderOptions()))
    assert [record.fields.get("prompt") for record in found] == texts
    assert max(sizes) == (16 if encoding == "DELTA_BYTE_ARRAY" else 41)  # few, where a byte may unfold to megabytes
    assert [record.number for record in found] == list(range(1, 42))


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY"])
def test_texts_that_unfold_to_much_are_no_more_than_a_line_at_once(tmp_path: Path, encoding: str) -> None:
    """A text of 9 MiB that each row shares is stored once."""
    long = "a" * (9 * 2**20)
    table = pyarrow.table({"prompt": [long + str(number) for number in range(3)], "twice": [long] * 3})
    columns = {"prompt": encoding, "twice": encoding}
    parquet.write_table(table, tmp_path / "a.parquet", use_dictionary=False, column_encoding=columns)
    found = list(read_records(tmp_path / "a.parquet", ReaderOptions()))
    assert [str(record.problem) for record in found] == [TOO_LONG] * 3


def test_a_name_with_a_point_is_no_part_of_another_column(tmp_path: Path) -> None:
    columns = {"data.prompt": ["x"], "data": [{"prompt": "y"}], "a.b": [[1]], "a": [2]}
    options = {"prompt_column": "data.prompt", "metadata_columns": ("a.b",)}
    (record,) = records_of(tmp_path, columns, **options)
    assert record.named == {"prompt": "x"} and record.fields == {"a.b": [1]}
    metadata = parquet.read_metadata(tmp_path / "a.parquet")
    with (tmp_path / "a.parquet").open("rb") as file:
        found = {page.column for page in pages(file, metadata, frozenset({"data.prompt"}))}
    assert found == {"data.prompt"}  # of both, which Parquet calls alike


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"not parquet at all", b"PAR1" + b"\0" * 40 + b"PAR1"])
def test_damage_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UsageError, match=r"cannot read .*a.parquet: it is not a readable Parquet file") as raised:
        list(read_records(tmp_path / "a.parquet", ReaderOptions()))
    assert "\n" not in str(raised.value)


TYPES = st.sampled_from(
    [
        pyarrow.int8(), pyarrow.uint64(), pyarrow.float32(), pyarrow.bool_(), pyarrow.string(), pyarrow.date32(),
        pyarrow.date64(), pyarrow.timestamp("ns"), pyarrow.timestamp("us", tz="Asia/Tokyo"), pyarrow.time32("ms"),
        pyarrow.duration("ns"), pyarrow.binary(), pyarrow.decimal128(38, 10), pyarrow.null(),
    ]
)  # fmt: skip
NESTED = st.recursive(
    TYPES,
    lambda inner: inner.map(pyarrow.list_) | inner.map(pyarrow.large_list) | inner.map(
        lambda kind: pyarrow.struct({"a": kind, "b": pyarrow.int64()})
    ),
    max_leaves=3,
)  # fmt: skip


@settings(max_examples=60)
@given(kind=NESTED, data=st.binary(min_size=64, max_size=64))
def test_any_bits_of_any_type_are_a_value_or_a_problem_of_their_row(kind: pyarrow.DataType, data: bytes) -> None:
    column = _array_of_bits(kind, data)
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = records_of(Path(folder), {"prompt": ["x"] * len(column), "value": column})
        except UsageError as error:
            assert "\n" not in str(error)
            return
    assert [record.number for record in found] == list(range(1, len(column) + 1))
    for record in found:
        json.dumps(record.fields)
        assert record.problem is None or record.problem.field == "value"


def _array_of_bits(kind: pyarrow.DataType, data: bytes) -> pyarrow.Array:
    """Two values of the type whose bits are those of the data."""
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        inner = _array_of_bits(kind.value_type, data)
        offsets = pyarrow.array([0, 1, 2], pyarrow.int64() if pyarrow.types.is_large_list(kind) else pyarrow.int32())
        made = pyarrow.LargeListArray if pyarrow.types.is_large_list(kind) else pyarrow.ListArray
        return made.from_arrays(offsets, inner)
    if pyarrow.types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return pyarrow.StructArray.from_arrays([_array_of_bits(each.type, data) for each in fields], fields=fields)
    if pyarrow.types.is_null(kind):
        return pyarrow.nulls(2)
    if kind in (pyarrow.string(), pyarrow.binary()):
        buffers = [None, pyarrow.array([0, 9, 20], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(data)]
        return pyarrow.Array.from_buffers(kind, 2, buffers)
    return pyarrow.Array.from_buffers(kind, 2, [None, pyarrow.py_buffer(data)])
