"""Keys, homes and messages of version 0.1 hold: `fixtures/v0_1` was written by it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from models.message import ChunkMessage
from producer.options import DecodingOptions
from producer.prompts.job_drafts import JobDraft, Submission, read_lines
from producer.prompts.validation import check
from tests.conftest import TOY_MODEL, Producer

FIXTURES = Path(__file__).parent / "fixtures" / "v0_1"
GOLDEN: list[dict[str, Any]] = json.loads((FIXTURES / "keys.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["case"])
def test_keys_seeds_parameters_and_the_hash_of_a_run_are_those_of_0_1(golden: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(golden["lines"]) + "\n", encoding="utf-8")
    submission = Submission(
        path=path, model=golden["model"], grid=DecodingOptions(**golden["options"]).grid(), seed=golden["seed"]
    )
    report = check(submission)
    assert report.content_hash == golden["content_hash"]
    drafts: list[JobDraft] = [
        draft for line in read_lines(submission, report.duplicate_hashes, {}) for draft in line.drafts
    ]
    found = {
        draft.custom_id: {
            "seed": (seed := draft.seed(golden["run_seed"])),
            "content_key": draft.content_key(submission.model, seed),
            "params": draft.params.stored,
        }
        for draft in drafts
    }
    assert found == golden["jobs"]


@pytest.fixture
def home_of_0_1(tmp_path: Path) -> Path:
    """A home with a finished run and one whose producer and worker were killed."""
    home = tmp_path / "home"
    home.mkdir()
    script = (FIXTURES / "home.sql").read_text(encoding="utf-8").replace("@MODEL@", str(TOY_MODEL))
    with sqlite3.connect(home / "nocturne.db") as connection:
        connection.executescript(script)
    connection.close()
    return home


def rows_of(producer: Producer, home: Path, statement: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(producer("sql", "--home", home, "--format", "json", statement).stdout)
    return rows


def test_a_home_of_0_1_is_taken_over_and_its_interrupted_run_resumed(producer: Producer, home_of_0_1: Path) -> None:
    before = "select custom_id, text from job_results where run_name = 'finished' order by custom_id, sample_index"
    producer("db", "upgrade", "--home", home_of_0_1)
    answers = rows_of(producer, home_of_0_1, before)
    assert len(answers) >= 12 and all(row["text"] is not None for row in answers)

    producer("resume", "interrupted", "--home", home_of_0_1, exit_code=1)  # 7 jobs had failed before
    counts = (
        "select jobs.state, count(*) as n from jobs join runs on runs.id = run_id "
        "where name = 'interrupted' group by jobs.state"
    )
    assert {row["state"]: row["n"] for row in rows_of(producer, home_of_0_1, counts)} == {"succeeded": 33, "failed": 7}
    assert rows_of(producer, home_of_0_1, before) == answers


def test_a_message_of_0_1_is_read() -> None:
    message = json.loads((FIXTURES / "message.json").read_text(encoding="utf-8"))
    chunk = ChunkMessage.model_validate(message["args"][0])
    assert [job.id for job in chunk.jobs] == [1, 2, 3, 4]
    assert chunk.jobs[0].prompt == "Once upon a time" and chunk.jobs[1].messages == [
        {"role": "user", "content": "Hello"}
    ]
    assert [(job.params or {}).get("strategy", "greedy") for job in chunk.jobs] == [
        "greedy",
        "nucleus",
        "beam",
        "sample",
    ]
