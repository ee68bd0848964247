"""Prompt files of every format, plain and compressed, good and bad."""

from __future__ import annotations

import gzip
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from producer.errors import LineProblem, UsageError
from producer.prompts.lines import PromptLine
from producer.prompts.records import ReaderOptions
from tests.support.prompts import read_prompts

CSV = 'custom_id,text,temperature,strategy,topic\na,one,0.5,sample,cats\nb,"two,\nlines",,greedy,dogs\n'


def good(path: Path, **options: Any) -> list[PromptLine]:
    lines = [line for _, line in read_prompts(path, ReaderOptions(**options))]
    assert all(isinstance(line, PromptLine) for line in lines), lines
    return lines  # type: ignore[return-value]


def errors(path: Path, **options: Any) -> list[str]:
    lines = read_prompts(path, ReaderOptions(**options))
    return [f"{number}: {line}" for number, line in lines if isinstance(line, LineProblem)]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_csv_columns_are_prompt_parameters_and_metadata(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", CSV)
    first, second = good(path, prompt_column="text")
    assert (first.custom_id, first.prompt, first.metadata) == ("a", "one", {"topic": "cats"})
    assert first.params == {"temperature": 0.5, "strategy": "sample"}
    assert (second.prompt, second.params) == ("two,\nlines", {"strategy": "greedy"})
    assert [number for number, _ in read_prompts(path, ReaderOptions(prompt_column="text"))] == [2, 3]


@pytest.mark.parametrize("template", ["About {topic}: {text}", "About {{ topic }}: {{ row['text'] }}"])
def test_a_template_makes_the_prompt(tmp_path: Path, template: str) -> None:
    first, _ = good(written(tmp_path, "a.csv", CSV), template=template)
    assert first.prompt == "About cats: one"
    assert first.metadata == {"topic": "cats", "text": "one"}


def test_a_template_may_be_used_with_jsonl_and_braces_of_json_stay(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"text": "x"}\n{"other": 1}\n')
    (_, first), (_, second) = read_prompts(path, ReaderOptions(template='{"word": "{text}"}'))
    assert isinstance(first, PromptLine) and first.prompt == '{"word": "x"}'
    assert isinstance(second, LineProblem) and "'text' is undefined" in str(second)


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", CSV)
    (error, _) = errors(path, template="{{ text.__class__.__mro__ }}")
    assert "unsafe" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has no column 'prompt'; its columns are custom_id, text, temperature, strategy, topic"),
        ({"prompt_column": "body"}, "has no column 'body'"),
        ({"template": "{body}"}, "--template names 'body', and the columns are custom_id"),
        ({"template": "{{ text"}, "--template is not a Jinja2 template"),
        ({"template": "x", "prompt_column": "text"}, "either --prompt-column or --template"),
        ({"format": "xml"}, "--input-format must be one of jsonl, csv, tsv, parquet, text, got 'xml'"),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        good(written(tmp_path, "a.csv", CSV), **options)


def test_rows_that_do_not_fit_the_header(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'prompt,topic\nx,y,z\nonly\ngood,one\n"open\n')
    assert errors(path) == [
        "2: has 3 columns, and the header has 2",
        "3: has 1 columns, and the header has 2",
        "5: is not CSV: unexpected end of data",
    ]


def test_tabs_and_a_byte_order_mark(tmp_path: Path) -> None:
    (line,) = good(written(tmp_path, "a.tsv", b"\xef\xbb\xbfprompt\ttopic\r\nx\ty\r\n"))
    assert (line.prompt, line.metadata) == ("x", {"topic": "y"})


def test_csv_that_is_not_utf_8_is_an_error_of_its_line(tmp_path: Path) -> None:
    assert errors(written(tmp_path, "a.csv", b"prompt\nx\n\xff\ny\n")) == [
        "3: prompt is not UTF-8; save the file as UTF-8, or name its encoding with --encoding"
    ]


def test_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    lines = good(written(tmp_path, "a.txt", "one \r\n\n  two\n"))
    assert [(line.custom_id, line.prompt) for line in lines] == [("line-1", "one "), ("line-3", "  two")]


def test_parquet_values_become_what_json_has(tmp_path: Path) -> None:
    table = pyarrow.table({
        "text": ["x"], "day": [date(2026, 1, 2)], "price": [Decimal("1.5")], "tags": [["a", "b"]], "none": [None],
        "max_new_tokens": [7],
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "a.parquet")
    (line,) = good(tmp_path / "a.parquet", prompt_column="text")
    assert line.metadata == {"day": "2026-01-02", "price": 1.5, "tags": ["a", "b"]}
    assert line.params == {"max_new_tokens": 7}


def test_parquet_with_a_binary_prompt_or_no_parquet_at_all(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"prompt": [b"x"]}), tmp_path / "a.parquet")
    assert errors(tmp_path / "a.parquet") == [
        "1: prompt is binary (1 bytes); cast the column to a string, or leave it out with --metadata-columns"
    ]
    with pytest.raises(UsageError, match="is not a readable Parquet file"):
        good(written(tmp_path, "b.parquet", "no"))


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    content = "".join(json.dumps({"prompt": f"prompt {n}"}) + "\n" for n in range(5000)).encode()
    packed = gzip.compress(content) if suffix == "gz" else pyarrow.compress(content, "zstd", asbytes=True)
    assert len(good(written(tmp_path, f"a.jsonl.{suffix}", packed))) == 5000
    with pytest.raises(UsageError, match=r"cannot read .*(ends too early|[Tt]runcated)"):
        good(written(tmp_path, f"cut.jsonl.{suffix}", packed[:-20]))
    with pytest.raises(UsageError, match="cannot read"):
        good(written(tmp_path, f"not.jsonl.{suffix}", content))


def test_a_name_that_says_nothing_asks_for_the_format(tmp_path: Path) -> None:
    path = written(tmp_path, "a.data", '{"prompt": "x"}')
    with pytest.raises(UsageError, match="cannot tell the format"):
        good(path)
    assert len(good(path, format="jsonl")) == 1


def test_nul_is_replaced_where_asked(tmp_path: Path) -> None:
    (line,) = good(written(tmp_path, "a.jsonl", '{"prompt": "a\\u0000b", "t": ["\\u0000"]}'), replace_nul=True)
    assert (line.prompt, line.metadata) == ("a\ufffdb", {"t": ["\ufffd"]})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_metadata_has_numbers_that_json_has(tmp_path: Path, number: str) -> None:
    (error,) = errors(written(tmp_path, "a.jsonl", f'{{"prompt": "x", "score": [{number}]}}'))
    assert "score must be a finite number" in error


@pytest.mark.parametrize(("limit", "number"), [(1, 1), (2**63, 2), (10**30, 2)])
def test_a_limit_of_any_size(limit: int, number: int, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("x\ny\n")
    assert len(good(path, limit=limit)) == number
