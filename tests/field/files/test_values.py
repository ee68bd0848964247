"""Values that would silently become others: numbers that were rounded, names that come twice, nulls, text of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from producer.errors import LineProblem, UsageError
from producer.options import InputOptions, parse_chat_argument
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import JobDraft, Submission, read_lines
from producer.prompts.readers.cells import cell_value
from producer.prompts.readers.record import MAX_NESTING
from tests.field.files.test_cells import draft_of_cell


def drafts_of(path: Path, **options: Any) -> list[JobDraft]:
    given = InputOptions(**options)
    reader, chat = given.reader_options(), given.chat_options()
    drafts = []
    for line in read_lines(Submission(path, "m", Grid({}), reader=reader, chat=chat), frozenset(), {}):
        if line.problem is not None:
            raise line.problem
        drafts += line.drafts
    return drafts


def draft_of_line(folder: Path, line: str | dict[str, Any], **options: Any) -> JobDraft:
    path = folder / "a.jsonl"
    path.write_text(line if isinstance(line, str) else json.dumps(line), encoding="utf-8")
    (draft,) = drafts_of(path, **options)
    return draft


@given(number=st.integers(0, 2**63 - 1))
def test_a_whole_number_keeps_every_digit(number: int) -> None:
    for text in (str(number), f"{number}.0", f"{number}.", f"+{number}.00"):
        assert cell_value("seed", text) == number


@pytest.mark.parametrize("cell", ["1.000", "12.000", "1.000.000", "-1.000"])
def test_a_point_that_may_part_thousands_is_refused_beside_decimal_commas(tmp_path: Path, cell: str) -> None:
    with pytest.raises(LineProblem, match=f"max_new_tokens must be a whole number .* got '{cell}'"):
        draft_of_cell(tmp_path, "max_new_tokens", cell, ";")


def test_other_points_beside_decimal_commas_are_points(tmp_path: Path) -> None:
    assert draft_of_cell(tmp_path, "max_new_tokens", "1000.0", ";").params.max_new_tokens == 1000
    assert draft_of_cell(tmp_path, "temperature", "0.125", ";").params.temperature == 0.125
    assert draft_of_cell(tmp_path, "max_new_tokens", "1.000", ",").params.max_new_tokens == 1


@pytest.mark.parametrize("column", ["custom_id", "id"])
def test_an_id_that_a_float_has_rounded_is_refused(column: str, tmp_path: Path) -> None:
    """pandas makes floats of whole numbers where a column has gaps."""
    options = {} if column == "custom_id" else {"id_column": column}
    for values, message in (([1.0, 2.0**53 - 1, None], None), ([1.0, 1234567890123456789.0], "may be rounded")):
        parquet.write_table(pyarrow.table({"prompt": ["x"] * len(values), column: values}), tmp_path / "a.parquet")
        if message is None and column == "custom_id":
            ids = [draft.custom_id for draft in drafts_of(tmp_path / "a.parquet")]
            assert ids == ["1", str(2**53 - 1), "line-3"]
        elif message is not None:
            with pytest.raises(LineProblem, match=message):
                drafts_of(tmp_path / "a.parquet", **options)


def test_a_rounded_seed_and_a_long_number_as_id_are_refused(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"prompt": ["x"], "seed": [2.0**60]}), tmp_path / "a.parquet")
    with pytest.raises(LineProblem, match="seed must be a whole number"):
        drafts_of(tmp_path / "a.parquet")
    with pytest.raises(LineProblem, match="custom_id must have at most 512 characters, got 600"):
        draft_of_line(tmp_path, '{"prompt": "x", "custom_id": ' + "9" * 600 + "}")


DOUBLES = [
    ('{"prompt": "x", "prompt": "y"}', "prompt"),
    ('{"prompt": "x", "temperature": 1, "temperature": 2}', "temperature"),
    ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "content"),
    ('{"prompt": "x", "topic": {"a": {"b": 1, "b": 2}}}', "b"),
    (json.dumps({"messages": '[{"role": "user", "content": "a", "content": "b"}]'}), "content"),
]


@pytest.mark.parametrize(("line", "name"), DOUBLES)
def test_a_name_that_comes_twice_is_refused(line: str, name: str, tmp_path: Path) -> None:
    """The last one would win in silence."""
    with pytest.raises(LineProblem, match=f"^{name} comes twice in an object, with different values"):
        draft_of_line(tmp_path, line)
    if "\\" not in line:
        (tmp_path / "a.json").write_text(f'[\n{{"prompt": "w"}},\n{line}]')
        with pytest.raises(UsageError, match=f"a.json:3: {name} comes twice"):
            drafts_of(tmp_path / "a.json")


def test_a_name_that_comes_twice_with_one_value_does_no_harm(tmp_path: Path) -> None:
    assert draft_of_line(tmp_path, '{"prompt": "x", "id": 1, "id": 1}').metadata == {"id": 1}


@pytest.mark.parametrize(
    ("name", "cell", "value"),
    [
        ("stop", "['x', \"y\"]", ("x", "y")), ("stop", "[END]", ("[END]",)), ("stop", "(a)", ("(a)",)),
        ("stop", "{x}", ("{x}",)), ("stop_token_ids", "(1, 2)", (1, 2)), ("logit_bias", "{3: -1.5}", {3: -1.5}),
    ],
)  # fmt: skip
def test_a_list_is_read_as_pandas_writes_it(tmp_path: Path, name: str, cell: str, value: Any) -> None:
    assert getattr(draft_of_cell(tmp_path, name, cell).params, name) == value


def test_a_list_without_commas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LineProblem, match="stop is a list without commas, as numpy prints it"):
        draft_of_cell(tmp_path, "stop", "['x' 'y']")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_template_does_not_print_a_null_as_the_word_none(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    rows = [{"text": "x", "note": "y"}, {"text": "z", "note": None}]
    if name == "a.jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with pytest.raises(LineProblem, match="note is null, and --template prints it"):
        drafts_of(path, template="{text} {note}")
    drafts = drafts_of(path, template="{{ text }}{% if note %} {{ note }}{% endif %}")
    assert [draft.prompt for draft in drafts] == ["x y", "z"]


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


HELLO = {"role": "user", "content": "Hi"}
CALL = {"from": "function_call", "value": '{"name": "f", "arguments": {"a": %s}}'}

#: Text inside of text: a field holds JSON as text, whose escapes show in the parsed value alone.
HIDDEN: list[tuple[dict[str, Any], str]] = [
    ({"messages": '[{"role": "user", "content": "a\\u0000"}]'}, r"messages has a NUL character .*; remove it$"),
    ({"messages": '[{"role": "user", "content": "a\\ud800"}]'}, "messages has a lone surrogate"),
    ({"messages": '[{"role": "user", "content": "a", "b": NaN}]'}, "messages must be a finite number"),
    ({"messages": f'[{{"role": "user", "content": "a", "b": {nested(MAX_NESTING)}}}]'}, "messages is nested more than"),
    ({"messages": "[{'role': 'user', 'content': 'a', 'b': b'x'}]"}, "messages is text that is not JSON"),
    ({"messages": "[{'role': 'user', 'content': 'a', 'b': {1, 2}}]"}, "messages is text that is not JSON"),
    ({"messages": [HELLO], "tools": '[{"name": "a\\u0000"}]'}, "tools has a NUL character"),
    ({"messages": [HELLO], "documents": f'[{{"text": {nested(MAX_NESTING)}}}]'}, "documents is nested more than"),
    ({"messages": [HELLO], "chat_template_kwargs": '{"a": "\\ud800"}'}, "chat_template_kwargs has a lone surrogate"),
    ({"messages": [HELLO, {**CALL, "value": CALL["value"] % '"\\u0000"'}]}, "messages has a NUL character"),
    ({"messages": [HELLO, {**CALL, "value": CALL["value"] % nested(MAX_NESTING)}]}, "messages is nested more than"),
]


@pytest.mark.parametrize(("line", "message"), HIDDEN)
def test_what_text_of_json_hides_is_refused_as_if_it_stood_there(
    line: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(LineProblem, match=message):
        draft_of_line(tmp_path, line)


def test_what_an_option_brings_is_checked_too(tmp_path: Path) -> None:
    for options, message in (
        ({"chat_arg": ['a="\\u0000"']}, "chat_template_kwargs has a NUL"),
        ({"chat_arg": [f"a={nested(MAX_NESTING)}"]}, "chat_template_kwargs is nested"),
        ({"system": "a\udcff"}, "messages is not UTF-8"),
    ):
        with pytest.raises(LineProblem, match=message):
            draft_of_line(tmp_path, {"prompt": "x"}, chat=True, **options)
    assert parse_chat_argument("a=NaN") == ("a", "NaN")


def test_keys_that_python_prints_as_numbers_are_those_of_json(tmp_path: Path) -> None:
    draft = draft_of_line(tmp_path, {"messages": "[{'role': 'user', 'content': 'a', 3: (1, 2)}]"})
    assert draft.messages == [{"role": "user", "content": "a", "3": [1, 2]}]
    draft.content_key("m", 1)
