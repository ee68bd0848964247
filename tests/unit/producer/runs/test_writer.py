"""Writing a run: all its jobs in one transaction, and none twice under one name."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from models.schema.job import Job
from models.schema.run import Run
from models.states import RunState
from producer.errors import InvalidInput, UsageError
from producer.prompts.job_drafts import Submission, derived_seed
from producer.prompts.validation import check, write_invalid
from producer.runs.writer import SubmitResult, find_unfinished, write
from tests.support.prompts import prompt_file, submission


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


def named(path: Path, **changes: object) -> Submission:
    return replace(submission(path), name="night", seed=None, **changes)  # type: ignore[arg-type]


def write_named(path: Path, database: Engine, on_duplicate: str = "skip", **changes: object) -> SubmitResult:
    asked = named(path, **changes)
    return write(asked, check(asked), database, on_duplicate=on_duplicate)


def test_the_same_file_under_the_same_name_is_submitted_once(tmp_path: Path, database: Engine) -> None:
    sampled = {"strategy": "sample"}  # its seeds are derived from the run's, which is drawn the first time
    path = prompt_file(tmp_path, *[{"custom_id": f"{n}", "prompt": "x", **sampled} for n in range(10)])
    first = write_named(path, database)
    assert (first.num_new, first.num_known) == (10, 0)
    assert write_named(path, database) == SubmitResult(first.run_id, 0, 10)
    more = prompt_file(tmp_path, *[{"custom_id": f"{n}", "prompt": "x", **sampled} for n in range(12)])
    assert write_named(more, database) == SubmitResult(first.run_id, 2, 10)
    with database.begin() as connection:
        assert connection.execute(select(Run.num_jobs)).scalars().all() == [12]
        assert connection.execute(select(func.count(func.distinct(Job.content_key)))).scalar_one() == 12
    again = write_named(more, database, "rerun")
    assert again.run_id != first.run_id and again.num_new == 12


def test_two_submissions_at_once_under_a_name_are_one_run(tmp_path: Path, database: Engine) -> None:
    path = prompt_file(tmp_path, {"custom_id": "a", "prompt": "x"})
    checked, found = check(named(path)), dict[str, SubmitResult]()

    def hold() -> None:
        second.start()
        second.join(0.5)  # it waits for this transaction

    def submit(name: str, **options: Any) -> None:
        found[name] = write(named(path), checked, database, **options)

    second = Thread(target=submit, args=("second",))
    first = Thread(target=submit, args=("first",), kwargs={"before_commit": hold})
    first.start()
    for thread in (first, second):
        thread.join()
    assert (found["first"].num_new, found["second"].num_new) == (1, 0)
    assert found["first"].run_id == found["second"].run_id


def test_duplicates_are_an_error_where_asked(tmp_path: Path, database: Engine) -> None:
    path = prompt_file(tmp_path, {"custom_id": "a", "prompt": "x"})
    write_named(path, database, "error")
    both = prompt_file(tmp_path, {"custom_id": "a", "prompt": "x"}, {"custom_id": "b", "prompt": "y"})
    with pytest.raises(UsageError, match="1 of the 2 jobs are in run"):
        write_named(both, database, "error")
    with database.begin() as connection:
        assert connection.execute(select(func.count()).select_from(Job)).scalar_one() == 1


@pytest.mark.parametrize("change", [{"prompt": "other"}, {"max_new_tokens": 5}, {"seed": 7}, {"strategy": "sample"}])
def test_a_custom_id_with_other_content_is_a_conflict(
    tmp_path: Path, sqlite_database: Engine, change: dict[str, object]
) -> None:
    write_named(prompt_file(tmp_path, {"custom_id": "a", "prompt": "x"}), sqlite_database)
    changed = prompt_file(tmp_path, {"custom_id": "new", "prompt": "y"}, {"custom_id": "a", "prompt": "x", **change})
    with pytest.raises(InvalidInput, match=r"prompts.jsonl:2: custom_id 'a' is in run .* with another prompt"):
        write_named(changed, sqlite_database)
    with sqlite_database.begin() as connection:
        assert connection.execute(select(func.count()).select_from(Job)).scalar_one() == 1


def test_another_model_is_another_run(tmp_path: Path, sqlite_database: Engine) -> None:
    path = prompt_file(tmp_path, {"custom_id": "a", "prompt": "x"})
    assert write_named(path, sqlite_database).run_id != write_named(path, sqlite_database, model="other").run_id


def test_bad_lines_are_left_out_and_written_beside_the_file(tmp_path: Path, sqlite_database: Engine) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x"}\n{\n{"prompt": "y", "top_p": 2}\n{"custom_id": "line-1", "prompt": "z"}\n')
    asked = submission(path)
    checked = check(asked, skip_invalid=True)
    assert (checked.num_jobs, checked.num_invalid) == (1, 3)
    assert write(asked, checked, sqlite_database).num_new == 1
    write_invalid(asked, checked)
    bad = [json.loads(line) for line in (tmp_path / "prompts.jsonl.invalid.jsonl").read_text().splitlines()]
    assert [(line["line"], line["text"]) for line in bad] == [
        (2, "{"), (3, '{"prompt": "y", "top_p": 2}'), (4, '{"custom_id": "line-1", "prompt": "z"}')
    ]  # fmt: skip
    assert "already used in line 1" in bad[2]["error"]


def test_a_deadline_is_kept_with_each_job(tmp_path: Path, sqlite_database: Engine) -> None:
    asked = submission(prompt_file(tmp_path, {"prompt": "x"}))
    write(asked, check(asked), sqlite_database, expires_after=timedelta(hours=8))
    with sqlite_database.begin() as connection:
        created, expires = connection.execute(select(Job.created_at, Job.expires_at)).one()
    assert expires is not None and expires - created == timedelta(hours=8)
