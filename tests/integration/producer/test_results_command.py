"""Getting results out as a person does: formats, filters, traces, one job, a page, and old ones thrown away."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from sqlalchemy import Engine, func, select, update

from models.schema.job import Job
from models.schema.job_event import JobEvent
from models.schema.result import Result
from models.schema.run import Run
from models.schema.trace import TokenTrace
from models.settings import read_settings
from models.states import FinishReason, JobState
from producer.runs import prune
from producer.runs.control import requeue
from tests.conftest import Producer
from tests.support.table_rows import RUN_ID, column_of, insert_run, output_of
from worker.engine.request import Hypothesis
from worker.storage.job_store import FinishedJob, JobStore

HOSTILE = "\x1b[2J<script>alert(1)</script>[bold]"


@pytest.fixture
def filled(sqlite_database: Engine) -> Engine:
    """Three jobs: two samples, a beam search that says hostile things, and one that failed."""
    job_ids = insert_run(sqlite_database, 3)
    store = JobStore(sqlite_database, "worker", 30.0)
    claims = store.claim(job_ids)
    hostile = output_of(job_ids[1])
    object.__setattr__(hostile.completions[0], "text", HOSTILE)
    object.__setattr__(hostile.completions[0].trace, "tokens", [HOSTILE] * 3)
    finished = [("one two three", -1.0), ("one two four", -2.0), ("other", -3.0)]
    object.__setattr__(
        hostile, "hypotheses", tuple(Hypothesis(text, score, FinishReason.EOS, 3) for text, score in finished)
    )
    store.commit([FinishedJob(claims[0], output_of(job_ids[0], samples=2)), FinishedJob(claims[1], hostile)])
    store.fail(claims[2], "EngineDied", "why")
    with sqlite_database.begin() as connection:
        connection.execute(update(Job).where(Job.id == job_ids[0]).values(metadata_={"user": {"age": 3}, "t": "x"}))
    return sqlite_database


@pytest.fixture
def at(filled: Engine) -> list[str]:
    return ["--database", filled.url.render_as_string()]


def test_jsonl_with_filters_and_traces(producer: Producer, at: list[str]) -> None:
    def ids(*options: str) -> list[str]:
        lines = producer("results", RUN_ID, *options, *at).stdout.splitlines()
        return [json.loads(line)["custom_id"] for line in lines]

    assert ids() == ["job-0", "job-0", "job-1", "job-2"]
    assert ids("--state", "failed") == ["job-2"]
    assert ids("--strategy", "beam") == []
    assert ids("--where", "user.age=3", "--where", "t=x") == ["job-0", "job-0"]
    assert ids("--where", "user.age=4") == []
    first = json.loads(producer("results", "--traces", *at).stdout.splitlines()[0])
    assert [token["position"] for token in first["trace"]] == [0, 1, 2]
    assert first["trace"][0]["top_logprobs"][0]["token_id"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "xml"], "--format must be one of jsonl, csv, parquet, openai, got 'xml'"),
        (["--state", "done"], "--state must be one of queued, running"),
        (["--strategy", "magic"], "--strategy must be one of greedy"),
        (["--where", "topic"], "--where must be KEY=VALUE"),
        (["-o", "/nowhere/x.csv"], "cannot write /nowhere/x.csv"),
    ],
)
def test_wrong_options(producer: Producer, at: list[str], options: list[str], message: str) -> None:
    assert message in producer("results", *options, *at, exit_code=2).stderr


def test_a_retry_with_a_wrong_option_changes_nothing(producer: Producer, filled: Engine, at: list[str]) -> None:
    assert "-o /nowhere/x.csv" in producer("retry", RUN_ID, "-o", "/nowhere/x.csv", *at, exit_code=2).stderr
    assert column_of(filled, Job.state) == ["succeeded", "succeeded", "failed"]


#: A word of the shell that is not UTF-8.
ODD = os.fsdecode(b"\xff")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", ODD, "job-0"], "there is no run '\\udcff'"),
        (["show", RUN_ID, ODD], "has no job '\\udcff'"),
        (["cancel", RUN_ID, ODD], "has no job '\\udcff'"),
        (["retry", RUN_ID, "--error-code", ODD], "--error-code must be a code such as EngineDied, got '\\udcff'"),
        (["sql", f"select '{ODD}'"], "the database refuses the statement: it is not UTF-8"),
    ],
)
def test_words_that_are_not_text_are_one_line(
    producer: Producer, at: list[str], words: list[str], message: str
) -> None:
    done = producer(*words, *at, exit_code=2)
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_csv_and_parquet_have_the_same_rows(producer: Producer, at: list[str], tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(producer("results", "--format", "csv", *at).stdout)))
    producer("results", "--format", "parquet", "-o", tmp_path / "r.parquet", *at)
    table = parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert [row["custom_id"] for row in rows] == [row["custom_id"] for row in table]
    assert table[0]["completion_tokens"] == 3 and table[3]["completion_tokens"] is None
    assert table[0]["metadata"] == {"user": {"age": 3}, "t": "x"}
    assert sorted(path.name for path in tmp_path.glob(".*")) == []  # nothing half written is left


def test_openai_answers_and_errors_in_two_files(producer: Producer, at: list[str], tmp_path: Path) -> None:
    done = producer("results", "--format", "openai", "-o", tmp_path / "out.jsonl", *at)
    assert "1 requests have no answer; they are in" in done.stderr
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    (error,) = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in answers] == ["job-0", "job-1"]
    assert len(answers[0]["response"]["body"]["choices"]) == 2
    assert error["error"] == {"code": "EngineDied", "message": "why"}


def test_one_job_in_color(producer: Producer, at: list[str]) -> None:
    shown = producer("show", RUN_ID, "job-0", "--alternatives", *at).stdout
    assert "job-0: succeeded, attempt 1" in shown and "sample 1: 3 tokens, eos" in shown
    assert "0.606531" in shown  # exp(-0.5)
    told = json.loads(producer("show", RUN_ID, "job-0", "--json", *at).stdout)
    assert (told["custom_id"], told["state"]) == ("job-0", "succeeded")
    assert [token["position"] for token in told["results"][0]["tokens"]] == [0, 1, 2]
    tree = producer("show", RUN_ID, "job-1", *at).stdout
    assert "3 finished hypotheses" in tree and "├── one two\n│   ├── -1.0000 (3 tokens, eos)  three\n" in tree
    assert "\x1b" not in tree and "[bold]" in tree
    assert "EngineDied: why" in producer("show", RUN_ID, "job-2", *at).stdout
    assert "has no job 'none'" in producer("show", RUN_ID, "none", *at, exit_code=2).stderr


def test_a_page_that_stands_by_itself(producer: Producer, at: list[str], tmp_path: Path) -> None:
    producer("report", "-o", tmp_path / "r.html", *at)
    page = (tmp_path / "r.html").read_text()
    assert HOSTILE not in page and "http" not in page.replace("http-equiv", "")  # nothing is fetched
    assert "<dt>jobs</dt><dd>3</dd>" in page and "<dt>succeeded</dt><dd>2</dd>" in page
    overview, chunk = chunk_of(page, "overview"), chunk_of(page, "prompts-0")
    assert [(cause["code"], cause["count"], cause["examples"]) for cause in overview["failures"]] == [
        ("EngineDied", 1, ["job-2"])
    ]
    assert chunk["prompts"][1]["texts"] == [HOSTILE] and chunk["texts"].count(HOSTILE) == 1
    assert [answer["g"] for answer in chunk["prompts"][0]["answers"]] == [0, 0]  # two samples, one answer
    assert overview["shown"] == {"prompts": 3, "of": 3, "answers": 3}


def test_a_page_shows_a_part_and_counts_all(producer: Producer, at: list[str], tmp_path: Path) -> None:
    producer("report", "--limit", "1", "--tokens", "none", "-o", tmp_path / "r.html", *at)
    page = (tmp_path / "r.html").read_text()
    overview, chunk = chunk_of(page, "overview"), chunk_of(page, "prompts-0")
    assert overview["shown"] == {"prompts": 1, "of": 3, "answers": 2}
    assert (overview["all"]["count"], len(chunk["prompts"]), chunk["texts"]) == (3, 1, [])
    told = producer("report", "--where", "t=x", "--all", "--tokens", "all", "-o", tmp_path / "r.html", *at).stderr
    assert "the page shows 6 tokens: about 0.0 MB" in told and "2 of 2 answers to 1 prompts" in told
    assert chunk_of((tmp_path / "r.html").read_text(), "overview")["all"]["jobs"] == {"succeeded": 1}
    producer("report", "--where", "t=\udcff", "-o", tmp_path / "r.html", *at)
    assert "Only jobs with t = ⟨U+DCFF⟩. " in (tmp_path / "r.html").read_text()  # an argument that is not UTF-8
    refused = producer("report", "--tokens", "some", "-o", tmp_path / "none.html", *at, exit_code=2).stderr
    assert "--tokens must be one of auto, all, none, got 'some'" in refused and not (tmp_path / "none.html").exists()


def test_two_runs_are_compared_by_custom_id(producer: Producer, filled: Engine, at: list[str], tmp_path: Path) -> None:
    job_ids = insert_run(filled, 4, run_id="later")
    store = JobStore(filled, "worker", 30.0)
    claims = store.claim(job_ids[1:])
    store.commit([FinishedJob(claim, output_of(claim.job_id)) for claim in claims])
    done = producer("report", RUN_ID, "later", "-o", tmp_path / "r.html", *at)
    page = (tmp_path / "r.html").read_text()
    overview = chunk_of(page, "overview")
    assert "3 of 3 jobs that both runs have; 1 only in B" in done.stderr
    assert overview["changes"] == {"lost": 1, "changed": 1, "gained": 1} and overview["only"] == [0, 1]
    assert [run["succeeded"] for run in overview["runs"]] == [2, 2]
    sides = [[side.get("text") for side in pair["sides"]] for pair in chunk_of(page, "pairs-0")["pairs"]]
    assert sides[1:] == [[HOSTILE, f"answer {job_ids[1]}"], [None, f"answer {job_ids[2]}"]]
    assert HOSTILE not in page
    same = producer("report", RUN_ID, RUN_ID, "-o", tmp_path / "none.html", *at, exit_code=2).stderr
    assert f"both names are of run {RUN_ID}" in same and not (tmp_path / "none.html").exists()


def test_jobs_without_a_partner_are_counted(producer: Producer, filled: Engine, at: list[str], tmp_path: Path) -> None:
    """As in runs whose grids have other values, which end their custom ids."""
    job_ids = insert_run(filled, 2, run_id="later")
    with filled.begin() as connection:
        connection.execute(update(Job).where(Job.id == job_ids[0]).values(custom_id="job-0#t=0.7"))
    done = producer("report", RUN_ID, "later", "-o", tmp_path / "r.html", *at)
    told = "1 jobs that both runs have; 2 only in A, 1 only in B"
    assert f"1 of {told}" in done.stderr and f"Showing all {told}." in (tmp_path / "r.html").read_text()
    assert chunk_of((tmp_path / "r.html").read_text(), "overview")["only"] == [2, 1]
    producer("report", RUN_ID, "later", "--where", "t=x", "-o", tmp_path / "r.html", *at, exit_code=2)
    with filled.begin() as connection:
        connection.execute(update(Job).where(Job.custom_id == "job-1").values(metadata_={"t": "x"}))
    producer("report", RUN_ID, "later", "--where", "t=x", "-o", tmp_path / "r.html", *at)
    page = (tmp_path / "r.html").read_text()  # jobs that are not selected are no jobs without a partner
    assert "Only jobs of A with t = x. " in page and chunk_of(page, "overview")["only"] == [1, 1]
    with filled.begin() as connection:
        connection.execute(update(Job).where(Job.id == job_ids[1]).values(custom_id="job-1#t=0.7"))
    none = producer("report", RUN_ID, "later", "-o", tmp_path / "none.html", *at, exit_code=2).stderr
    assert "have no custom_id in common; 3 only in A, 2 only in B; nothing can be compared" in none
    assert not (tmp_path / "none.html").exists()


def chunk_of(page: str, name: str) -> Any:
    """A chunk of a page's data."""
    (packed,) = re.findall(f'data-chunk="{name}">([^<]*)</script>', page)
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_a_run_that_is_opened_meanwhile_is_not_pruned(filled: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with filled.begin() as connection:
        connection.execute(update(Run).values(finished_at=datetime.now(UTC) - timedelta(days=40)))
    count = prune._count_letters

    def count_after_a_retry(database: Engine, age: timedelta) -> int:
        assert requeue(database, RUN_ID, [JobState.FAILED]) == 1
        return count(database, age)

    monkeypatch.setattr(prune, "_count_letters", count_after_a_retry)
    settings = read_settings(database=filled.url.render_as_string())
    prune.prune_runs(settings, "30d", traces_only=False, is_dry=False, as_json=False)
    assert column_of(filled, Job.state) == ["succeeded", "succeeded", "queued"]
    assert column_of(filled, Run.id) == [RUN_ID]


def test_old_runs_are_pruned(producer: Producer, filled: Engine, at: list[str]) -> None:
    insert_run(filled, 1, run_id="young")
    with filled.begin() as connection:
        connection.execute(update(Run).values(finished_at=datetime.now(UTC) - timedelta(days=40)))

    def counts() -> list[int]:
        with filled.connect() as connection:
            return [
                connection.execute(select(func.count()).select_from(table)).scalar_one()
                for table in (Run, Job, Result, TokenTrace, JobEvent)
            ]

    before = counts()
    dry = producer("prune", "--older-than", "30d", "--dry-run", *at).stderr
    assert "would delete 1 runs with 3 jobs and 9 trace rows" in dry
    assert counts() == before
    producer("prune", "--older-than", "30d", "--traces-only", *at)
    assert counts() == [2, 4, 3, 0, before[4]]
    producer("prune", "--older-than", "30d", *at)
    assert counts() == [1, 1, 0, 0, 0]  # the young one is still running
    assert "--older-than must be a duration" in producer("prune", "--older-than", "soon", *at, exit_code=2).stderr
