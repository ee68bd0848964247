"""From a file to job rows: everything is checked first, everything is written at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from models.job import Job
from models.run import Run
from models.states import RunState
from producer.drafts import Submission, derived_seed
from producer.errors import InvalidInput, UsageError
from producer.grid import Grid
from producer.submission import find_unfinished, write
from producer.validation import MAX_ERRORS_SHOWN, check


def prompt_file(folder: Path, *records: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def submission(path: Path, **grid: list[object]) -> Submission:
    return Submission(path, "toy", Grid(grid), seed=1)


def test_a_run_is_written_with_all_its_jobs(tmp_path: Path, sqlite_database: Engine) -> None:
    path = prompt_file(
        tmp_path,
        {"custom_id": "a", "prompt": "x", "topic": "cats", "priority": 9},
        {"custom_id": "b", "messages": [{"role": "user", "content": "y"}], "seed": 5},
    )
    asked = submission(path, strategy=["sample"], temperature=[0.5, 1.0])
    run_id = write(asked, check(asked), sqlite_database).run_id
    with sqlite_database.begin() as connection:
        rows = connection.execute(select(Job.__table__).order_by(Job.id)).all()
        run = connection.execute(select(Run)).one()
    assert [row.custom_id for row in rows] == [
        "a#temperature=0.5", "a#temperature=1.0", "b#temperature=0.5", "b#temperature=1.0"
    ]  # fmt: skip
    assert [row.seed for row in rows] == [
        derived_seed(1, "a#temperature=0.5"), derived_seed(1, "a#temperature=1.0"), 5, 5
    ]  # fmt: skip
    assert rows[0].metadata == {"topic": "cats"}
    assert (rows[0].priority, rows[2].priority) == (9, 5)
    assert rows[1].grid_point == {"temperature": 1.0}
    assert rows[2].messages == [{"role": "user", "content": "y"}]
    assert (run.id, run.num_jobs, run.state) == (run_id, 4, RunState.RUNNING)


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


def test_a_run_to_resume_is_found_by_its_content(tmp_path: Path, sqlite_database: Engine) -> None:
    path = prompt_file(tmp_path, {"prompt": "x"})
    checked = check(submission(path))
    assert find_unfinished(sqlite_database, checked.content_hash) is None
    run_id = write(submission(path), checked, sqlite_database).run_id
    found = find_unfinished(sqlite_database, checked.content_hash)
    assert found is not None and found.id == run_id
    other = check(submission(path, strategy=["sample"]))
    assert find_unfinished(sqlite_database, other.content_hash) is None


def test_a_fault_while_writing_leaves_nothing(tmp_path: Path, sqlite_database: Engine) -> None:
    path = prompt_file(tmp_path, *[{"custom_id": f"{number}", "prompt": "x"} for number in range(5000)])
    asked = submission(path)
    checked = check(asked)
    lines = path.read_text().splitlines()
    # The file changes between the two readings: the second one meets an id twice, late.
    path.write_text("\n".join([*lines[:-1], lines[0]]))
    with pytest.raises(Exception, match="UNIQUE constraint failed"):
        write(asked, checked, sqlite_database)
    with sqlite_database.begin() as connection:
        assert connection.execute(select(func.count()).select_from(Job)).scalar_one() == 0
        assert connection.execute(select(func.count()).select_from(Run)).scalar_one() == 0


def test_derived_seeds_differ_by_run_and_by_id() -> None:
    seeds = {derived_seed(run_seed, f"job-{number}") for run_seed in (1, 2) for number in range(500)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
