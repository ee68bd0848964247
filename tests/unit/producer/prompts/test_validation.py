"""Validation: every error of a file is counted before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from producer.errors import InvalidInput, UsageError
from producer.prompts.grid import Grid
from producer.prompts.validation import MAX_ERRORS_SHOWN, check
from tests.support.prompts import prompt_file, submission


def test_all_errors_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    path = prompt_file(tmp_path, *[{"prompt": "x", "max_new_tokens": -1} for _ in range(MAX_ERRORS_SHOWN + 5)])
    with pytest.raises(InvalidInput) as raised:
        check(submission(path))
    lines = str(raised.value).splitlines()
    assert lines[0] == f"{path}:1: max_new_tokens must be a whole number from 1 to 1,000,000, got -1"
    assert len(lines) == MAX_ERRORS_SHOWN + 2
    assert lines[-2:] == ["… and 5 more", "25 errors; nothing was submitted"]


def test_a_line_is_wrong_once_however_many_points_the_grid_has(tmp_path: Path) -> None:
    path = prompt_file(tmp_path, {"prompt": "x", "max_new_tokens": -1})
    with pytest.raises(InvalidInput, match=r"\n1 error; nothing was submitted"):
        check(submission(path, strategy=["sample"], temperature=[0.5, 1.0]))


def test_an_id_that_comes_twice_names_both_lines(tmp_path: Path) -> None:
    path = prompt_file(tmp_path, {"custom_id": "a", "prompt": "x"}, {"custom_id": "a", "prompt": "y"})
    with pytest.raises(InvalidInput, match=":2: custom_id 'a' was already used in line 1; make it unique"):
        check(submission(path))


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n")
    with pytest.raises(UsageError, match="has no prompts"):
        check(submission(path))


def test_metadata_that_looks_like_a_parameter_is_warned_about_once(tmp_path: Path) -> None:
    path = prompt_file(tmp_path, {"prompt": "x", "temprature": 1}, {"prompt": "y", "temprature": 2})
    (warning,) = check(submission(path)).warnings.values()
    assert warning == f"{path}:1: temprature is kept as metadata; did you mean temperature?"


def test_a_file_of_bad_lines_only_is_an_error_even_then(tmp_path: Path) -> None:
    path = prompt_file(tmp_path, {"prompt": 1})
    with pytest.raises(InvalidInput, match="1 error; nothing was submitted"):
        check(submission(path), skip_invalid=True)
    assert not (tmp_path / "prompts.jsonl.invalid.jsonl").exists()


def test_a_grid_of_more_than_a_million_needs_a_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.prompts.validation.MAX_GRID_JOBS", 5)
    path = prompt_file(tmp_path, {"prompt": "x"}, {"prompt": "y"}, {"prompt": "z"})
    asked = submission(path, strategy=["sample"], temperature=[0.5, 1.0])
    with pytest.raises(UsageError, match=r"more than 5 jobs \(so many by line 3\).*--yes"):
        check(asked)
    assert check(asked, allow_many=True).num_jobs == 6


def test_a_grid_that_is_too_large_for_one_line_is_not_made(tmp_path: Path) -> None:
    asked = replace(submission(prompt_file(tmp_path, {"prompt": "x"})), grid=Grid({}, repeat=10**9))
    with pytest.raises(UsageError, match=r"more than 1,000,000 jobs \(1,000,000,000 of each line\).*--yes"):
        check(asked)
