"""Files that are not what their name says are refused by what they are; marks, line ends and blank lines do no harm."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from producer.cli import main
from producer.console import say
from producer.errors import UsageError
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import Submission
from producer.prompts.records import ReaderOptions, read_records
from producer.prompts.validation import check
from producer.runs import lifecycle
from tests.conftest import TOY_MODEL
from tests.field.files.test_tables import prompts_of
from tests.field.files.test_tables import records_of as records_of_bytes

LINE = b'{"prompt": "x"}\n'
TABLE = b"prompt,topic\nx,y\n"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def parquet_bytes(**columns: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def zstd(content: bytes) -> bytes:
    compressed: bytes = pyarrow.compress(content, codec="zstd", asbytes=True)
    return compressed


FOREIGN: dict[str, tuple[bytes, str]] = {
    "gzip": (gzip.compress(LINE, mtime=0), "is compressed with gzip; let its name end in .gz"),
    "zstd": (zstd(LINE), "is compressed with zstd; let its name end in .zst"),
    "bzip2": (bz2.compress(LINE), "is compressed with bzip2; unpack it"),
    "xz": (lzma.compress(LINE), "is compressed with xz; unpack it"),
    "workbook": (b"PK\x03\x04\x14\x00\x06\x00\x08\x00", "is a zip archive, as workbooks of Excel are"),
    "old workbook": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is a workbook of an old Excel"),
    "arrow": (b"ARROW1\0\0" + bytes(60), "is an Arrow file; write it as Parquet"),
    "sqlite": (b"SQLite format 3\0" + bytes(80), "is an SQLite database"),
    "pdf": (b"%PDF-1.7\n", "is a PDF; give its text"),
    "pointer": (LFS_POINTER, "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.txt", "a.parquet", "a.json"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind_is_named(kind: str, name: str) -> None:
    content, message = FOREIGN[kind]
    with pytest.raises(UsageError, match=f"{name} {message}"):
        records_of_bytes(content, name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_parquet_and_web_pages_are_named(name: str) -> None:
    with pytest.raises(UsageError, match="is a Parquet file; give --input-format parquet"):
        records_of_bytes(parquet_bytes(prompt=["x"]), name)
    page = b"\n <!DOCTYPE html>\n<html><body>404</body></html>"
    if name == "a.txt":
        assert len(records_of_bytes(page, name)) == 2
        return
    with pytest.raises(UsageError, match="is a web page, not the file itself"):
        records_of_bytes(page, name)


def test_a_file_compressed_twice_is_told_so() -> None:
    with pytest.raises(UsageError, match="a.jsonl.gz is compressed twice; unpack it once"):
        records_of_bytes(gzip.compress(gzip.compress(LINE, mtime=0)), "a.jsonl.gz")


@pytest.mark.parametrize("text", [b"ORC,prompt\n1,x\n", b"PAR1,prompt\n1,x\n", b"BZh,prompt\n1,x\n"])
def test_a_text_that_begins_like_such_a_file_is_read(text: bytes) -> None:
    assert prompts_of(text, "a.csv") == ["x"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_an_encoding_of_several_bytes_is_named(encoding: str, name: str) -> None:
    text = {"a.csv": TABLE, "a.jsonl": LINE, "a.txt": b"x\n"}[name].decode()
    with pytest.raises(UsageError, match=f"is {encoding.upper()}; save it as UTF-8, or give --encoding {encoding}"):
        records_of_bytes(text.encode(encoding), name)
    assert prompts_of(text.encode(encoding), name, encoding=encoding) == ["x"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "utf-32-le", "gb18030"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(encoding: str) -> None:
    mark = "" if encoding == "utf-8-sig" else "\ufeff"
    (record,) = records_of_bytes((mark + TABLE.decode()).encode(encoding), "a.csv", encoding=encoding)
    assert record.fields == {"prompt": "x", "topic": "y"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "prompt,topic\nx,y\n\ufeffz,w\n"),
        ("a.csv", 'prompt,topic\nx,y\n\ufeff"z",w\n'),
        ("a.txt", "x\n\ufeffz\n"),
        ("a.jsonl", '{"prompt": "x"}\n\ufeff{"prompt": "z"}\n'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_marks_of_files_that_are_put_together_are_no_text(name: str, content: str, encoding: str) -> None:
    assert prompts_of(content.encode(encoding), name, encoding=encoding) == ["x", "z"]


def test_chinese_in_utf_16_is_named_too() -> None:
    """Its characters have no byte of zero; its line ends have."""
    with pytest.raises(UsageError, match="is UTF-16-LE"):
        records_of_bytes("你好\n世界\n".encode("utf-16-le"), "a.txt")
    (record,) = records_of_bytes(b"a\0b\n", "a.txt")
    assert record.fields == {"prompt": "a\0b"}  # refused for its NUL


def test_a_mark_of_utf_8_under_another_name_is_refused() -> None:
    with pytest.raises(UsageError, match="is UTF-8 by its first bytes; leave --encoding out"):
        records_of_bytes("prompt\nnaïve\n".encode("utf-8-sig"), "a.csv", encoding="cp1252")


@pytest.mark.parametrize("encoding", [None, "cp1252"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b"x\ry\r"), ("a.jsonl", b'{"prompt": "x"}\r{"prompt": "y"}\r'), ("a.tsv", b"prompt\rx\ry\r")],
)
def test_lines_may_end_in_carriage_returns_alone(name: str, content: bytes, encoding: str | None) -> None:
    """As old Macs write; a text was one prompt of all its lines."""
    assert prompts_of(content, name, encoding=encoding) == ["x", "y"]


def test_a_carriage_return_beside_line_ends_is_text() -> None:
    long = b"a" * 200_000
    assert prompts_of(b"a\rb\n" + long + b"\n", "a.txt") == ["a\rb", long.decode()]
    assert prompts_of(long + b"\rb\nc\n", "a.txt") == [long.decode() + "\rb", "c"]


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b"  \n\n", b"sep=,\n\n", b"\nsep=,\n"])
def test_the_header_is_the_first_line_that_is_not_blank(blank: bytes) -> None:
    (record,) = records_of_bytes(blank + TABLE, "a.csv")
    assert record.fields == {"prompt": "x", "topic": "y"} and record.number == blank.count(b"\n") + 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"prompt,topic\n", "a.csv has no prompts; give a row under the header"),
        ("a.parquet", parquet_bytes(prompt=pyarrow.array([], pyarrow.string())), "has no prompts; give a row under"),
        ("a.jsonl", b"\n\n", "has no prompts; give one JSON object per line"),
        ("a.txt", b"\xef\xbb\xbf\n", "has no prompts; give one prompt per line"),
        ("a.csv", b"\xef\xbb\xbf", "has no prompts; give a row under the header"),
        ("a.csv", b"prompt;topic\nx;a\n;\n", "a.csv:3: is a row without any text, as spreadsheets leave them"),
        ("a.csv", b"prompt,topic\nx,a\n , \n", "a.csv:3: is a row without any text"),
        ("a.tsv", b"prompt\ttopic\nx\ta\n\t\n", "a.tsv:3: is a row without any text(.|\n)*submits the other 1 job$"),
        ("a.csv", b"prompt,topic\rx,a\ny,b\n", "outside of quotes; save it with one line end"),
        ("a.tsv", b'"id"\t"prompt"\n1\tx\n', "; TSV has no quotes: --input-format csv reads a table with them"),
        ("a.jsonl", b'{"prompt": "x"},\n', "a.jsonl:1: has a comma behind its object; leave it out"),
        ("a.json", b'[{"prompt": "x"},\n]', "a.json:2: is not JSON: a comma behind the last element"),
        (
            "a.jsonl",
            b'{"instruction": "x", "input": "y"}\n',
            "it has instruction, input: name one with --prompt-column",
        ),
    ],
)
def test_the_cause_and_the_remedy_are_of_the_format(name: str, content: bytes, message: str) -> None:
    refuse(name, content, message)


#: Batch lines of other services, and the sentence's part about each.
REQUESTS = [
    (
        {"custom_id": "a", "params": {"max_tokens": 9, "messages": []}},
        "params has messages: write the fields of params",
    ),
    ({"key": "a", "request": {"contents": [{"parts": [{"text": "x"}]}]}}, "request has contents: write the fields of"),
    ({"custom_id": "0", "body": {"messages": []}}, 'body has messages: .*or add "url": "/v1/chat/completions"'),
    ({"recordId": "1", "modelInput": {"inputText": "x"}}, "modelInput has inputText: write the fields of modelInput"),
    ({"id": 1, "row": {"text": "x"}}, "it has id, row: name one with --prompt-column"),
]


@pytest.mark.parametrize(("line", "message"), REQUESTS)
def test_a_request_of_another_service_is_told_where_its_fields_belong(line: dict[str, Any], message: str) -> None:
    refuse("a.jsonl", json.dumps(line).encode(), f"a.jsonl:1: needs either prompt or messages; {message}")


def refuse(name: str, content: bytes, message: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            check(Submission(path, "m", Grid({}), reader=ReaderOptions()))


def test_columns_of_a_binary_file_cannot_color_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(UsageError) as refused:
        (Path(folder) / "a.csv").write_bytes(b"a\x1b[31mred,b\n1,2\n")
        list(read_records(Path(folder) / "a.csv", ReaderOptions()))
    say(str(refused.value))
    assert "\x1b" not in capsys.readouterr().err


def ended(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The messages of a command that is refused."""
    monkeypatch.setattr("sys.argv", ["producer", "run", *arguments, "--model", str(TOY_MODEL), "--dry-run"])
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"text\nx\n", ["--input-format", "csv"], "error: stdin has no column 'prompt'; its columns are text"),
        (gzip.compress(LINE, mtime=0), [], "error: stdin is compressed with gzip"),
        (b'[{"prompt": "x"},\n]', [], "error: stdin:2: is not JSON: a comma behind the last element"),
    ],
)
def test_messages_name_stdin_and_not_its_copy(
    content: bytes,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lifecycle, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert ended(["-", *options], monkeypatch, capsys).startswith(message)


def test_a_window_that_the_command_shortens_is_the_one_that_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ended(["--prompt", "once upon a time " * 20, "--max-model-len", "16"], monkeypatch, capsys)
    assert told.startswith("error: --prompt:1: prompt has ") and "tokens, and the context window of" in told
    assert "is 16; at least one token must be left for the answer" in told


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_prompt_of_the_command_line_has_no_encoding(
    encoding: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ended(["--prompt", "naïve", "--encoding", encoding, "--id-column", "id"], monkeypatch, capsys)
    assert told.startswith("error: --prompt:1: id is missing, and --id-column names it")


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".zst", zstd)])
def test_a_file_may_have_any_name(suffix: str, compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.jsonl" + suffix.encode())
    path.write_bytes(compress(LINE * 3))
    assert [record.fields for record in read_records(path, ReaderOptions())] == 3 * [{"prompt": "x"}]
