"""Small files that unfold to much: reading is bounded, and the bound is named with line or column and the remedy."""

from __future__ import annotations

import gzip
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from producer.errors import UsageError
from producer.prompts.readers import parquet_records
from producer.prompts.readers.record import MAX_COLUMNS
from producer.prompts.records import ReaderOptions, Record, read_records
from tests.support.processes import clean_environment

MIB = 2**20
HEADS = {
    "row.csv": b"prompt\n", "header.csv": b"", "quoted.csv": b'prompt\n"', "row.tsv": b"prompt\n",
    "line.jsonl": b'{"prompt": "', "array.json": b'[{"prompt": "', "line.txt": b"",
}  # fmt: skip

#: Reads a file to its end in a process of its own, and prints its problem and the memory that it took.
READ = """
import resource, sys
from pathlib import Path
from producer.errors import UsageError
from producer.prompts.records import ReaderOptions, read_records
import pyarrow
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print([str(record.problem) for record in read_records(Path(sys.argv[1]), ReaderOptions())][-1])
except UsageError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def compress(path: Path, head: bytes, num_mib: int) -> None:
    """A file whose only line goes on without an end."""
    opened = gzip.open(path, "wb", 1) if path.suffix == ".gz" else pyarrow.output_stream(str(path), compression="zstd")
    with opened as file:
        file.write(head)
        for _ in range(num_mib):
            file.write(b"x" * MIB)


def read_apart(path: Path) -> tuple[str, int]:
    """The problem, and the MiB of memory that reading took."""
    done = subprocess.run(
        [sys.executable, "-c", READ, path], capture_output=True, text=True, check=True, env=clean_environment()
    )
    problem, mib = done.stdout.splitlines()[-2:]
    return problem, int(mib)


@pytest.mark.parametrize("suffix", [".zst", pytest.param(".gz", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name", [name if name == "row.csv" else pytest.param(name, marks=pytest.mark.long) for name in HEADS]
)
def test_a_line_without_an_end_takes_little_memory(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}{suffix}"
    compress(path, HEADS[name], 400)
    assert path.stat().st_size < 4 * MIB
    problem, mib = read_apart(path)
    assert "is longer than 16 MiB" in problem or "is not JSON: Unterminated string" in problem
    assert mib < 200


@pytest.mark.parametrize("suffix", [".bz2", ".xz", ".zip", ".lz4"])
def test_other_compressions_are_refused_by_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"prompts.csv{suffix}"
    path.write_bytes(b"BZh9")
    with pytest.raises(UsageError, match="cannot tell the format"):
        list(read_records(path, ReaderOptions()))


def test_a_million_columns_are_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    names = ["prompt", *(f"c{number}" for number in range(MAX_COLUMNS))]
    path.write_text(",".join(names) + "\n" + ",".join(["x"] * len(names)) + "\n" + "," * 1_000_000 + "\n")
    with pytest.raises(UsageError, match=r"wide.csv:1 has 10,001 columns, and at most 10,000 .* --metadata-columns"):
        list(read_records(path, ReaderOptions()))
    tracemalloc.start()
    found = list(read_records(path, ReaderOptions(metadata_columns=("c7",))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found[0].fields == {"prompt": "x", "c7": "x"}
    assert str(found[1].problem) == "has 1000001 columns, and the header has 10001"
    assert peak < 20 * MIB


def test_a_message_names_the_first_columns_only(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text(",".join(f"c{number}" for number in range(9_000)) + "\n")
    with pytest.raises(UsageError) as raised:
        list(read_records(path, ReaderOptions()))
    assert "and 8,950 more" in str(raised.value) and len(str(raised.value)) < 1_000


def repeated(text: str, times: int) -> Any:
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * times, "int32"), pyarrow.array([text]))


def lists_of(values: Any, lengths: list[int]) -> Any:
    offsets = [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets, "int32"), values)


PROMPTS = pyarrow.array(["a", "b", "c"])

#: Tables that are small in a file, the problem that names them, and the options that read them all the same.
TABLES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "a cell": (lambda: {"prompt": pyarrow.array(["x" * (40 * MIB)])}, "is longer than 16 MiB"),
    "a repeated text in a list": (
        lambda: {"prompt": PROMPTS, "texts": lists_of(repeated("x" * 100_000, 1_000), [1, 998, 1])},
        "is longer than 16 MiB",
    ),
    "a repeated text in a struct": (
        lambda: {"prompt": repeated("x" * (9 * MIB), 2), "s": pyarrow.StructArray.from_arrays(
            [repeated("x" * (9 * MIB), 2)], ["text"])},
        "is longer than 16 MiB",
    ),
    "columns": (
        lambda: {"prompt": PROMPTS, **{f"c{number}": PROMPTS for number in range(MAX_COLUMNS)}}, "10,001 columns",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_parquet_that_unfolds_is_named(name: str, tmp_path: Path) -> None:
    make, problem = TABLES[name]
    path = tmp_path / "small.parquet"
    parquet.write_table(pyarrow.table(make()), path, compression="zstd")
    assert problem in problem_of(path, ReaderOptions())


def problem_of(path: Path, options: ReaderOptions) -> str:
    """All problems of the file and of its rows."""
    try:
        return " ".join(str(record.problem) for record in read_records(path, options))
    except UsageError as error:
        return str(error)


def test_a_repeated_text_is_held_a_few_times_at_once(tmp_path: Path) -> None:
    path = tmp_path / "small.parquet"
    parquet.write_table(pyarrow.table({"prompt": repeated("x" * MIB, 300)}), path, compression="zstd")
    assert path.stat().st_size < MIB
    tracemalloc.start()
    lengths = {len(record.fields["prompt"]) for record in read_records(path, ReaderOptions())}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lengths == {MIB} and peak < 100 * MIB


def test_pages_and_lists_are_measured_before_they_are_unfolded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.parquet"
    table = pyarrow.table({
        "prompt": PROMPTS, "wide": pyarrow.array(["x" * MIB] * 3),
        "numbers": lists_of(pyarrow.array([7] * 30_000), [10_000] * 3),
    })  # fmt: skip
    parquet.write_table(table, path, compression="zstd", use_dictionary=["numbers"])
    monkeypatch.setattr(parquet_records, "MAX_PAGE_BYTES", 2 * MIB)
    told = problem_of(path, ReaderOptions())
    assert "a page of column 'wide' unfolds to 3 MiB, and at most 2 MiB are read" in told
    monkeypatch.setattr(parquet_records, "MAX_PAGE_BYTES", 4 * MIB)
    monkeypatch.setattr(parquet_records, "MAX_NESTED_VALUES", 20_000)
    assert "column 'numbers' has lists of more than 20,000 values" in problem_of(path, ReaderOptions())
    assert rows_of(path, ReaderOptions(metadata_columns=("wide",)))[0].fields["wide"] == "x" * MIB


def rows_of(path: Path, options: ReaderOptions) -> list[Record]:
    return list(read_records(path, options))


def test_a_damaged_page_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "damaged.parquet"
    parquet.write_table(pyarrow.table({"prompt": PROMPTS}), path)
    whole = path.read_bytes()
    for position in range(4, len(whole) // 2):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            rows_of(path, ReaderOptions())
        except UsageError as error:
            assert "cannot read" in str(error) or "unfolds to" in str(error)


@pytest.mark.long
def test_every_bomb_is_read_in_a_process_with_little_memory(tmp_path: Path) -> None:
    """One and a half GiB of address space is what a small container has left."""
    path = tmp_path / "row.csv.zst"
    compress(path, b"prompt\n", 2_000)
    done = subprocess.run(
        [sys.executable, "-c", READ, path], capture_output=True, text=True, env=clean_environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1536 * MIB, 1536 * MIB)),
    )  # fmt: skip
    assert "is longer than 16 MiB" in done.stdout, done.stderr
