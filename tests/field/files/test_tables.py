"""CSV, TSV and JSON files of the world: dialects as people have them, and damage that never merges rows."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.errors import UsageError
from producer.prompts.records import ReaderOptions, Record, read_records
from tests.conftest import TOY_MODEL, Producer

CELLS = st.text(alphabet='ab ,;"\n\\x', max_size=8)


def records_of(content: bytes, name: str, **options: Any) -> list[Record]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        return list(read_records(path, ReaderOptions(**options)))


def prompts_of(content: bytes, name: str, **options: Any) -> list[str]:
    found = records_of(content, name, **options)
    assert not [record.problem for record in found if record.problem is not None]
    return [record.fields["prompt"] for record in found]


def lines_of(records: list[Record]) -> Iterator[int]:
    for record in records:
        yield from range(record.number, record.last_number + 1)


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("tsv.tsv", b'id\tprompt\n1\t"Hello" he said\n2\t"open\n3\tfine\n', ['"Hello" he said', '"open', "fine"]),
        ("excel.csv", 'id;prompt\r\n1;"Grüße; alle"\r\n2;zwei\r\n'.encode("utf-8-sig"), ["Grüße; alle", "zwei"]),
        ("sep.csv", b'sep=;\r\nid;prompt\r\n1;"a;b"\r\n', ["a;b"]),
        ("tabs.csv", b'id\tprompt\n1\t"a\tb"\n', ["a\tb"]),
        ("mac.csv", b"id,prompt\r1,one\r2,two\r", ["one", "two"]),
        ("backslash.csv", b'id,prompt\n1,"say \\"hi\\", then"\n2,"back\\\\slash"\n', ['say "hi", then', "back\\slash"]),
        ("doubled.csv", b'id,prompt\n1,"say ""hi"""\n2,"a\r\nb"\n', ['say "hi"', "a\r\nb"]),
        ("inches.csv", b'id,prompt\n1,5" disk\n', ['5" disk']),
    ],
)
def test_dialects(name: str, content: bytes, prompts: list[str]) -> None:
    assert prompts_of(content, name) == prompts


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "shift_jis", "latin-1"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.jsonl", "a.json"])
def test_a_named_encoding(encoding: str, name: str) -> None:
    text = "カタカナ" if encoding == "shift_jis" else "naïve café"
    as_json = json.dumps({"prompt": text}, ensure_ascii=False)
    content = {"txt": text, "jsonl": as_json, "json": f"[\n{as_json}\n]"}.get(name[2:], f"prompt\r\n{text}\r\n")
    assert prompts_of(content.encode(encoding), name, encoding=encoding) == [text]


def test_what_is_not_of_the_encoding_is_a_problem_of_its_line() -> None:
    content = b"prompt\none\n\x81\ntwo\n"
    for name in ("a.csv", "a.tsv", "a.txt"):
        problems = {record.number: record.problem for record in records_of(content, name, encoding="cp1252")}
        assert "is not cp1252 (byte 0x81)" in str(problems[3]) and problems[2] is None and problems[4] is None
    with pytest.raises(UsageError, match="is UTF-16; .* --encoding utf-16"):
        records_of('{"prompt": "x"}'.encode("utf-16"), "a.jsonl")
    with pytest.raises(UsageError, match="--encoding must name an encoding"):
        records_of(b"", "a.jsonl", encoding="klingon")


def test_one_missing_quote_costs_one_line() -> None:
    rows = [f'{number},"text {number}, with ""quotes""",cats' for number in range(2, 100)]
    rows[10] = rows[10].replace('quotes"""', 'quotes""')
    found = records_of("\n".join(["id,prompt,topic", *rows]).encode(), "a.csv")
    bad = [record for record in found if record.problem is not None]
    assert [(record.number, record.last_number, record.raw) for record in bad] == [(12, 12, rows[10])]
    assert len(found) == 98


def test_a_header_in_the_middle_is_no_prompt() -> None:
    """As `cat a.csv b.csv` leaves it, with a byte order mark where the second one has it."""
    for second in (b"id,prompt\n", b"\xef\xbb\xbfid,prompt\r\n", b'"id","prompt"\n'):
        found = records_of(b"id,prompt\n1,one\n" + second + b"2,two\n", "a.csv")
        assert [str(record.problem or "") for record in found] == [
            "", "repeats the header, as files that are put together do; leave it out", ""
        ]  # fmt: skip
    (record,) = records_of(b"prompt\nprompt\n", "a.csv")
    assert record.fields == {"prompt": "prompt"}
    found = records_of(b'\xef\xbb\xbf{"prompt": "a"}\n\xef\xbb\xbf{"prompt": "b"}\n', "a.jsonl")
    assert [record.fields["prompt"] for record in found] == ["a", "b"]


@pytest.mark.parametrize("header", ["Prompt", " prompt", "PROMPT ", "\ufeffprompt"])
def test_a_column_that_is_spelled_alike_is_offered(header: str) -> None:
    with pytest.raises(UsageError, match=rf"did you mean {header!r}\?".replace("\\u", "\\\\u")):
        records_of(f"id,{header}\n1,x\n".encode(), "a.csv")
    with pytest.raises(UsageError, match="--id-column names 'ID', .*; did you mean 'id'?"):
        records_of(b"id,prompt\n1,x\n", "a.csv", id_column="ID")


def test_a_header_of_two_equal_names_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a.csv:1: two columns are called 'prompt'"):
        records_of(b"prompt,prompt\n1,2\n", "a.csv")


@settings(max_examples=150)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), delimiter=st.sampled_from([",", ";"]))
def test_what_csv_writes_is_read(rows: list[tuple[str, str]], delimiter: str) -> None:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([("topic", "prompt"), *rows])
    found = records_of(file.getvalue().encode(), "a.csv")
    assert [(record.fields["topic"], record.fields["prompt"]) for record in found] == rows


@settings(max_examples=150)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6),
    damage=st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["", '"', "\n", ",", "\\", "\udcff"])), max_size=4),
    name=st.sampled_from(["a.csv", "a.tsv"]),
)
def test_every_physical_line_belongs_to_one_record(
    rows: list[tuple[str, str]], damage: list[tuple[int, str]], name: str
) -> None:
    file = io.StringIO()
    csv.writer(file, delimiter="," if name == "a.csv" else "\t").writerows(rows)
    text = file.getvalue().replace("\r\n", "\n")
    for place, character in damage:  # a character more, another, or one less
        text = text[:place] + character + text[place + 1 :]
    header = "topic,prompt\n" if name == "a.csv" else "topic\tprompt\n"
    content = (header + text).encode("utf-8", "surrogateescape")
    found = records_of(content, name)
    lines = content.decode("utf-8", "replace").split("\n")
    assert list(lines_of(found)) == sorted(set(lines_of(found)))  # none twice
    blank = {number for number, line in enumerate(lines, 1) if line in ("", "\r")}
    assert set(range(2, len(lines) + 1)) - set(lines_of(found)) <= blank
    for record in found:
        assert record.raw == "\n".join(lines[record.number - 1 : record.last_number]).removesuffix("\r")


@settings(max_examples=150)
@given(
    content=st.binary(max_size=80) | st.text(alphabet='[]{},:"prompt1 \n\\', max_size=60).map(str.encode),
    name=st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.json", "a.txt", "a.parquet", "a.csv.gz", "a.jsonl.zst"]),
    encoding=st.sampled_from([None, "cp1252", "utf-16", "shift_jis"]),
)
def test_any_bytes_are_records_or_refused(content: bytes, name: str, encoding: str | None) -> None:
    try:
        found = records_of(content, name, encoding=encoding, prompt_column="prompt")
    except UsageError as error:
        assert str(error) and "\n" not in str(error)
        return
    numbers = list(lines_of(found))
    assert numbers == sorted(set(numbers)) or name == "a.json"  # an array may have several objects in a line


RECORDS = [{"prompt": f"text {number}", "nested": {"a": [1, {"b": None}]}} for number in range(3)]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=2),
        "[" + ",\n".join(json.dumps(record) for record in RECORDS) + "]\n",
        "[\n" + "\n,".join(json.dumps(record) for record in RECORDS) + "\n]",
        "\n".join(json.dumps(record, indent=4) for record in RECORDS),
        "\n".join(json.dumps(record) for record in RECORDS),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_an_array_and_printed_objects_are_records(content: str, name: str) -> None:
    found = records_of(content.encode("utf-8-sig"), name)
    assert [record.fields for record in found] == RECORDS
    lines = content.split("\n")
    for record in found:
        assert f'"text {record.fields["prompt"][-1]}"' in "\n".join(lines[record.number - 1 : record.last_number])


def test_an_array_of_any_length_is_read_a_piece_at_a_time() -> None:
    prompts = [f"{number} " + "é" * (number * 7 % 5000) for number in range(300)] + ["x" * 1_000_000]
    content = json.dumps([{"prompt": prompt} for prompt in prompts], ensure_ascii=False).encode()
    assert prompts_of(content, "a.json") == prompts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n {"prompt": "a"},\n {"prompt": "b"\n', r"a.json:4: is not JSON: .*fix the file"),
        ('[\n {"prompt": "a"}\n {"prompt": "b"}]', r"a.json:3: is not JSON: ',' expected between two elements"),
        ('[{"prompt": "a"}] x', "a.json:1: is not JSON: text after the array"),
        ('[{"prompt": "a"}', "a.json:1: is not JSON: the array is not closed"),
    ],
)
def test_a_damaged_array_is_refused_with_its_line(content: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        records_of(content.encode(), "a.json")


def test_the_file_of_rejected_lines_has_their_first_and_last_line_and_text(producer: Producer, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,topic\none,x\n"two\nmore",y,z\n"three\nlines",\n', encoding="utf-8")
    done = producer("run", "a.csv", "--model", TOY_MODEL, "--skip-invalid", "--max-new-tokens", 1)
    bad = [json.loads(line) for line in (tmp_path / "a.csv.invalid.jsonl").read_text(encoding="utf-8").splitlines()]
    assert "2 invalid lines are left out" in done.stderr
    assert [(line["line"], line["last_line"], line["text"]) for line in bad] == [(3, 3, '"two'), (4, 4, 'more",y,z')]
