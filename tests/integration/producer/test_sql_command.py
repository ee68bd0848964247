"""`producer sql`: every example answers on both databases, and nothing that writes gets through."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from models.database.connection import open_database
from producer.errors import UsageError
from producer.results.sql.examples import EXAMPLES, Example
from tests.conftest import Producer
from tests.support.processes import ROOT, clean_environment
from tests.support.table_rows import insert_run, output_of, run_sql
from worker.storage.job_store import FinishedJob, JobStore


def url_of(database: Engine) -> str:
    return database.url.render_as_string(hide_password=False)


@pytest.fixture
def filled(database: Engine) -> Engine:
    """One job with two samples, one that failed."""
    job_ids = insert_run(database, 2, metadata={"topic": "cats"})
    store = JobStore(database, "worker", 30.0)
    claims = store.claim(job_ids)
    store.commit([FinishedJob(claims[0], output_of(job_ids[0], samples=2))])
    store.fail(claims[1], "EngineDied", "why")
    return database


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_every_example_runs(filled: Engine, example: Example) -> None:
    reader = open_database(url_of(filled), read_only=True)
    columns, _ = run_sql(reader, example.statement(filled.dialect.name))
    assert columns
    reader.dispose()


def test_examples_find_what_is_there(filled: Engine) -> None:
    reader = open_database(url_of(filled), read_only=True)
    answers = {e.name: run_sql(reader, e.statement(filled.dialect.name))[1] for e in EXAMPLES}
    reader.dispose()
    assert answers["repeats"][0][2:] == (2, 1)
    assert answers["failures"] == [("EngineDied", 1, "why")]
    assert [row[2:] for row in answers["json"]] == [(2, 0)]
    assert answers["topics"] == [("cats", 2)]
    assert [row[2:4] for row in answers["answers"]] == [(2, 2)]
    assert [row[5:8] for row in answers["agreement"]] == [(2, 1, 1.0)]
    assert [row[2:] for row in answers["lengths"]] == [(2, 0.0, 3.0, 3.0)]


TRICKS = {
    "sqlite": [
        "delete from runs",
        "with x as (select 1) delete from runs",
        "insert into runs select * from runs",
        "update jobs set state = 'failed'",
        "drop table token_traces",
        "create table t (x)",
        "create temp table t (x)",
        "attach '/tmp/nocturne-trick.db' as other",
        "pragma query_only = off",
        "pragma writable_schema = on",
        "vacuum into '/tmp/nocturne-trick.db'",
        "select load_extension('x')",
        "select 1; delete from runs",
        "begin; delete from runs; commit",
        "replace into job_transitions values ('succeeded', 'failed')",
    ],
    "postgresql": [
        "delete from runs",
        "with x as (delete from runs returning 1) select * from x",
        "insert into job_transitions values ('succeeded', 'failed')",
        "update jobs set state = 'failed'",
        "drop table token_traces",
        "create temp table t (x int)",
        "select 1; delete from runs",
        "commit; delete from runs",
        "set transaction read write; delete from runs",
        "begin read write; delete from runs; commit",
        "copy runs to program 'cat > /tmp/nocturne-trick'",
        "copy runs to '/tmp/nocturne-trick'",
        "select nextval('jobs_id_seq')",
        "select setval('jobs_id_seq', 1)",
        "select lo_create(0)",
        "truncate runs cascade",
        "do $$ begin delete from runs; end $$",
        "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()",
    ],
}


def test_no_trick_writes(filled: Engine) -> None:
    with filled.connect() as connection:
        before = connection.execute(text("select count(*), min(state) from jobs")).one()
    reader = open_database(url_of(filled), read_only=True)
    for trick in TRICKS[filled.dialect.name]:
        with pytest.raises(UsageError):
            run_sql(reader, trick)
    reader.dispose()
    with filled.connect() as connection:
        assert connection.execute(text("select count(*), min(state) from jobs")).one() == before
        assert connection.execute(text("select count(*) from runs")).scalar_one() == 1
    assert not Path("/tmp/nocturne-trick").exists() and not Path("/tmp/nocturne-trick.db").exists()


@pytest.mark.usefixtures("sqlite_database")
def test_stdin_that_is_not_text_is_one_line(sqlite_url: str) -> None:
    command = [sys.executable, "-m", "producer", "sql", "--database", sqlite_url]
    environment = {**clean_environment(), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, input=b"select '\xff';\n", capture_output=True, env=environment, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == b"error: stdin is not utf-8: invalid start byte; give the statements as UTF-8\n"


@pytest.mark.usefixtures("sqlite_database")
def test_formats_and_stdin(producer: Producer, sqlite_url: str) -> None:
    statement = "select 'a|b' as x, 1 as y"
    assert json.loads(producer("sql", statement, "--format", "json", "--database", sqlite_url).stdout) == [
        {"x": "a|b", "y": 1}
    ]
    markdown = producer("sql", statement, "--format", "markdown", "--database", sqlite_url).stdout
    assert markdown == "| x | y |\n| --- | --- |\n| a\\|b | 1 |\n"
    several = "select 1 as a;\nselect\n 2 as b;\n"
    assert producer("sql", "--format", "csv", "--database", sqlite_url, stdin=several).stdout == "a\n1\nb\n2\n"
    assert (
        "--format must be one of"
        in producer("sql", statement, "--format", "xml", "--database", sqlite_url, exit_code=2).stderr
    )
    assert "-- strategies: how did each strategy do?" in producer("sql", "--examples", "--database", sqlite_url).stdout
    told = producer("sql", "--examples", "runs", "--format", "csv", "--database", sqlite_url)
    assert told.stdout.startswith("run_name,state,num_jobs")
