"""JSON files in any layout: each object is a job of its own, with a name and a place of its own in messages."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.errors import UsageError
from producer.model_files.folder import model_files
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import Line, Submission, read_lines
from producer.prompts.prompt_check import PromptCheck
from producer.prompts.validation import check, write_invalid
from tests.conftest import TOY_MODEL

SPACE = st.text(alphabet=" \n\t", max_size=3)
OBJECT = st.fixed_dictionaries(
    {"prompt": st.text(min_size=1, max_size=3)}, optional={"topic": st.lists(st.integers(), max_size=2)}
)


def lines_of(content: str, *, skip_invalid: bool = False, **given: Any) -> list[Line]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
        submission = Submission(path, "m", Grid({}), **given)
        report = check(submission, skip_invalid=skip_invalid)
        return list(read_lines(submission, report.duplicate_hashes, {}))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), indent=st.sampled_from([None, 0, 2]), newline=st.sampled_from(["\n", "\r\n", "\r"]))
def test_an_array_of_any_layout_is_its_elements(data: st.DataObject, indent: int | None, newline: str) -> None:
    texts = [each for each in data.draw(st.lists(OBJECT, min_size=1, max_size=5)) if "\0" not in each["prompt"]]
    if not texts:
        return
    content = data.draw(SPACE) + "["
    for number, each in enumerate(texts):
        content += ("," if number else "") + data.draw(SPACE) + json.dumps(each, indent=indent) + data.draw(SPACE)
    content = (content + "]").replace("\n", newline)
    found = lines_of(content)
    drafts = [draft for line in found for draft in line.drafts]
    assert [(draft.prompt, draft.metadata.get("topic")) for draft in drafts] == [
        (each["prompt"], each.get("topic")) for each in texts
    ]
    assert len({draft.custom_id for draft in drafts}) == len({line.shown_number for line in found}) == len(texts)
    assert [line.number for line in found] == sorted(line.number for line in found)
    assert found[-1].last_number <= content.count(newline) + 1


COMPACT = (
    '[{"prompt":"a"},{"prompt":"b","custom_id":"x"},{"prompt":""},\n{"prompt":"c"},{"prompt":"d","custom_id":"x"}]'
)


def test_elements_of_one_line_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(COMPACT)
    submission = Submission(tmp_path / "a.json", "m", Grid({}))
    with pytest.raises(UsageError) as refused:
        check(submission)
    assert str(refused.value).replace(str(tmp_path), "").splitlines() == [
        "/a.json:1 (record 3 of the line): prompt is empty; give at least one character",
        "/a.json:2 (record 2 of the line): custom_id 'x' was already used in line 1 (record 2 of the line); "
        "make it unique",
        "2 errors; nothing was submitted; --skip-invalid submits the other 3 jobs",
    ]
    report = check(submission, skip_invalid=True)
    drafts = [draft for line in read_lines(submission, report.duplicate_hashes, {}) for draft in line.drafts]
    assert [draft.custom_id for draft in drafts] == ["line-1", "x", "line-2"]
    rejected = [json.loads(line) for line in write_invalid(submission, report).read_text().splitlines()]
    assert [(each["line"], each["text"]) for each in rejected] == [
        (1, '{"prompt":""}'),
        (2, '{"prompt":"d","custom_id":"x"}'),
    ]


def test_a_prompt_that_the_model_refuses_is_the_only_one_of_its_line() -> None:
    texts = ["once", "once upon a time " * 20, "a fox"]
    files = model_files(str(TOY_MODEL))
    assert files is not None
    window = PromptCheck(files, context_window=16, created_at=datetime(2026, 1, 1, tzinfo=UTC))
    content = json.dumps([{"prompt": text} for text in texts])
    found = lines_of(content, skip_invalid=True, prompt_check=window)
    assert [line.problem is None for line in found] == [True, False, True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"data": [{"prompt": "x"}, {"prompt": "y"}]}',
            "data is a list of 2 records: write each as a line",
        ),
        ('{"rows": [{"row_idx": 0, "row": {"prompt": "x"}}]}', "rows is a list of 1 records"),
        ('[\n["x",\n"y"]\n]', 'must be a JSON object, got ["x", "y"]'),
    ],
)
def test_another_shape_is_told_in_one_line(content: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        lines_of(content)
    assert message in str(refused.value).splitlines()[0]
