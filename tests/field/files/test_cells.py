"""Numbers, booleans and nulls of tables as their tools write them, and data sets that one command submits."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pytest
from pyarrow import parquet

from producer.errors import LineProblem
from producer.options import DecodingOptions
from producer.prompts.job_drafts import JobDraft, Submission, read_lines
from producer.prompts.records import ReaderOptions
from tests.conftest import TOY_MODEL, Producer
from tests.support.processes import ROOT


def drafts_of(path: Path, **options: Any) -> list[JobDraft]:
    submission = Submission(path, "m", DecodingOptions().grid(), reader=ReaderOptions(**options))
    drafts = []
    for line in read_lines(submission, frozenset(), {}):
        if line.problem is not None:
            raise line.problem
        drafts += line.drafts
    return drafts


def draft_of_cell(folder: Path, name: str, cell: str, delimiter: str = ",") -> JobDraft:
    path = folder / "a.csv"
    quoted = '"' + cell.replace('"', '""') + '"'
    columns, row = ["prompt", name], ["x", quoted]
    if name in ("temperature", "top_k", "min_p"):
        columns, row = [*columns, "strategy"], [*row, "sample"]
    path.write_text(delimiter.join(columns) + "\n" + delimiter.join(row) + "\n", encoding="utf-8")
    (draft,) = drafts_of(path)
    return draft


@pytest.mark.parametrize(
    ("name", "cell", "value"),
    [
        ("max_new_tokens", "7", 7), ("max_new_tokens", "7.0", 7), ("max_new_tokens", " 7 ", 7),
        ("max_new_tokens", "7.", 7), ("max_new_tokens", "+7", 7), ("max_new_tokens", "1e2", 100),
        ("max_new_tokens", "1E+02", 100), ("seed", "12345678901234567", 12345678901234567),
        ("temperature", "0.7", 0.7), ("temperature", ".5", 0.5), ("temperature", "1", 1.0),
        ("temperature", "5E-1", 0.5), ("top_k", "40.0", 40), ("n", "3.0", 3),
        ("ignore_eos", "True", True), ("ignore_eos", "TRUE", True), ("ignore_eos", "false", False),
        ("ignore_eos", "FALSE", False), ("ignore_eos", "1", True), ("ignore_eos", "0.0", False),
        ("stop", '["a", "b"]', ("a", "b")), ("stop", "7", ("7",)), ("stop", "true", ("true",)),
        ("stop", "END", ("END",)),
        ("stop", '"NA"', ("NA",)), ("stop_token_ids", "[3, 4]", (3, 4)), ("logit_bias", '{"3": 1.5}', {3: 1.5}),
        ("strategy", "greedy", "greedy"), ("trace", "none", "none"),
    ],
)  # fmt: skip
def test_a_cell_means_what_its_tool_means(tmp_path: Path, name: str, cell: str, value: Any) -> None:
    assert getattr(draft_of_cell(tmp_path, name, cell).params, name) == value


#: R, pandas, Spark, MySQL, Excel, Python, JavaScript.
NULLS = ["", " ", "NA", "NaN", "nan", "NULL", "null", "None", "N/A", "#N/A", "<NA>", "NaT", "\\N"]


@pytest.mark.parametrize("cell", NULLS)
@pytest.mark.parametrize("name", ["max_new_tokens", "top_k", "seed", "stop", "ignore_eos", "logit_bias"])
def test_a_null_is_a_parameter_that_is_not_given(tmp_path: Path, name: str, cell: str) -> None:
    absent = draft_of_cell(tmp_path, name, "").params
    assert draft_of_cell(tmp_path, name, cell).params == absent


@pytest.mark.parametrize("cell", [null for null in NULLS if null.strip()])
def test_a_null_elsewhere_is_text(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'prompt,topic,date\n{cell},"{cell}",2026-11-26\n', encoding="utf-8")
    (draft,) = drafts_of(path)
    assert (draft.prompt, draft.metadata) == (cell, {"topic": cell, "date": "2026-11-26"})


@pytest.mark.parametrize(
    ("name", "cell"),
    [("seed", "1.23457E+17"), ("seed", "9.1e15"),
     ("max_new_tokens", "1,000"), ("max_new_tokens", "7.5"), ("temperature", "warm"), ("ignore_eos", "yes"),
     ("max_new_tokens", "9" * 6000), ("temperature", "1e999"), ("temperature", "1e-99999999999999999999"),
     ("seed", "1e99999999999999999999"), ("n", "True"), ("max_new_tokens", "1_000")],
)  # fmt: skip
def test_a_cell_that_means_nothing_is_refused_by_name(tmp_path: Path, name: str, cell: str) -> None:
    with pytest.raises(LineProblem, match=f"{name} must be .*, got"):
        draft_of_cell(tmp_path, name, cell)


def test_excels_decimal_comma(tmp_path: Path) -> None:
    assert draft_of_cell(tmp_path, "temperature", "0,7", ";").params.temperature == 0.7
    with pytest.raises(LineProblem, match="temperature must be"):
        draft_of_cell(tmp_path, "temperature", "0,7", ",")
    with pytest.raises(LineProblem, match="max_new_tokens must be"):
        draft_of_cell(tmp_path, "max_new_tokens", "1,000", ";")  # a thousand, or one


FRAME = pandas.DataFrame(
    {"prompt": ["a", "b"], "max_new_tokens": [7, None], "temperature": [0.7, None], "strategy": ["sample", None],
     "ignore_eos": [True, None], "stop": [None, "END"], "custom_id": [1, 2]}
)  # fmt: skip


def test_what_pandas_writes_is_read(tmp_path: Path) -> None:
    """A missing value turns pandas' whole numbers into floats and its booleans into objects."""
    FRAME.to_csv(tmp_path / "a.csv", index=False)
    FRAME.to_csv(tmp_path / "na.csv", index=False, na_rep="NaN")
    FRAME.to_csv(tmp_path / "excel.csv", index=False, sep=";", decimal=",")
    FRAME.to_parquet(tmp_path / "a.parquet")
    FRAME.astype(str).to_parquet(tmp_path / "texts.parquet")
    FRAME.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    for name in ("a.csv", "na.csv", "excel.csv", "a.parquet", "texts.parquet", "a.jsonl"):
        first, second = drafts_of(tmp_path / name)
        assert (first.params.max_new_tokens, first.params.temperature, first.params.ignore_eos) == (7, 0.7, True), name
        assert (str(first.params.strategy), first.params.stop, first.custom_id) == ("sample", (), "1"), name
        assert (str(second.params.strategy), second.params.stop) == ("greedy", ("END",)), name
        assert second.params.max_new_tokens == 1000 and not second.params.ignore_eos, name


@pytest.mark.parametrize("kind", [pyarrow.float16(), pyarrow.float32(), pyarrow.float64(), pyarrow.decimal128(5, 2)])
def test_a_number_of_any_width_is_the_one_that_was_written(tmp_path: Path, kind: pyarrow.DataType) -> None:
    from decimal import Decimal

    import numpy

    value: Any = Decimal("0.70") if pyarrow.types.is_decimal(kind) else 0.7
    value = numpy.float16(0.7) if kind == pyarrow.float16() else value
    columns = {"temperature": pyarrow.array([value], kind), "score": pyarrow.array([value], kind)}
    table = pyarrow.table({"prompt": ["x"], "strategy": ["sample"], **columns})
    parquet.write_table(table, tmp_path / "a.parquet")
    (draft,) = drafts_of(tmp_path / "a.parquet")
    assert draft.params.temperature == 0.7 and draft.metadata == {"score": 0.7}


ALPACA = [
    {"instruction": "Name three colors.", "input": "", "output": "Red, green, blue."},
    {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"},
]


def alpaca_template() -> str:
    """The template that the documentation prints."""
    import shlex

    text = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if "alpaca_data.json" in line and "producer" in line]
    words = shlex.split(line.replace("$'", "'"))
    return words[words.index("--template") + 1].replace("\\n", "\n")  # as the shell reads $'…'


@pytest.mark.parametrize("name", ["alpaca_data.json", "alpaca.jsonl", "alpaca.parquet"])
def test_an_alpaca_file_needs_the_documented_command_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(ALPACA), path)
    else:
        lines = "\n".join(map(json.dumps, ALPACA))
        path.write_text(json.dumps(ALPACA, indent=4) if name.endswith(".json") else lines, encoding="utf-8")
    first, second = drafts_of(path, template=alpaca_template())
    assert first.prompt == "### Instruction:\nName three colors.\n\n### Response:\n"
    assert second.prompt == "### Instruction:\nTranslate.\n\n### Input:\nGuten Tag\n\n### Response:\n"
    assert second.metadata["output"] == "Good day"


def test_the_documented_command_runs(producer: Producer, tmp_path: Path) -> None:
    (tmp_path / "alpaca_data.json").write_text(json.dumps(ALPACA, indent=4), encoding="utf-8")
    shown = producer("run", "alpaca_data.json", "--model", TOY_MODEL, "--template", alpaca_template(), "--dry-run")
    assert "2 jobs from 2 lines" in shown.stdout and "warning" not in shown.stderr
    assert "### Instruction:\nName three colors." in shown.stdout
    assert io.StringIO(shown.stdout).readline()
