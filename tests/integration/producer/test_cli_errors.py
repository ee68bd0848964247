"""Wrong use: a message a person can act on, on stderr, exit code 2, and nothing half done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import func, select

from models.database.connection import open_database
from models.schema.job import Job
from tests.conftest import TOY_MODEL, Producer
from tests.support.processes import ROOT, clean_environment

GOOD = {"custom_id": "a", "prompt": "x"}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(GOOD))
    return path


def num_jobs(database_url: str) -> int:
    database = open_database(database_url)
    with database.begin() as connection:
        count = connection.execute(select(func.count()).select_from(Job)).scalar_one()
    database.dispose()
    return count


@pytest.mark.parametrize("command", ["run", "submit"])
def test_an_unknown_model(producer: Producer, prompts: Path, tmp_path: Path, command: str, broker: str) -> None:
    for model, message in [
        ("no/such", "unknown model 'no/such': it is not a folder here, and the model hub did not give it"),
        ("./nowhere", "unknown model './nowhere': there is no such folder"),
        (str(tmp_path), "has no config.json"),
    ]:
        done = producer(command, prompts, "--model", model, "--broker", broker, exit_code=2)
        assert message in done.stderr
        assert done.stdout == ""
    assert not (tmp_path / ".nocturne").exists()


def test_a_model_without_safetensors(producer: Producer, prompts: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "pytorch_model.bin").write_bytes(b"")
    done = producer("run", prompts, "--model", model, exit_code=2)
    assert "has no safetensors (found: pytorch_model.bin)" in done.stderr


@pytest.mark.usefixtures("sqlite_database")
def test_an_unreachable_redis(producer: Producer, prompts: Path, sqlite_url: str) -> None:
    connection = ["--broker", "redis://someone:secret@127.0.0.1:1/0", "--database", sqlite_url]
    done = producer("submit", prompts, "--model", TOY_MODEL, *connection, exit_code=2)
    assert "cannot reach Redis at redis://someone:***@127.0.0.1:1/0" in done.stderr
    assert "secret" not in done.stderr
    assert num_jobs(sqlite_url) == 0


def test_an_unreachable_database(producer: Producer, prompts: Path, broker: str) -> None:
    connection = ["--broker", broker, "--database", "postgresql://someone:secret@127.0.0.1:1/x"]
    done = producer("submit", prompts, "--model", TOY_MODEL, *connection, exit_code=2)
    assert "cannot use the database" in done.stderr and "127.0.0.1" in done.stderr
    assert "secret" not in done.stderr


def test_a_database_without_the_schema(producer: Producer, prompts: Path, broker: str, postgres_url: str) -> None:
    connection = ["--broker", broker, "--database", postgres_url]
    done = producer("submit", prompts, "--model", TOY_MODEL, *connection, exit_code=2)
    assert "run: producer db upgrade" in done.stderr
    producer("db", "upgrade", "--database", postgres_url)
    run_id = producer("submit", prompts, "--model", TOY_MODEL, *connection).stdout.strip()
    assert run_id in producer("status", "--database", postgres_url).stdout


def test_submitting_without_a_broker(producer: Producer, prompts: Path) -> None:
    done = producer("submit", prompts, "--model", TOY_MODEL, exit_code=2)
    assert "give --broker redis://" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        ("", "has no prompts"),
        ("{", ":1: is not JSON"),
        (json.dumps(GOOD) + "\n" + json.dumps(GOOD), ":2: custom_id 'a' was already used in line 1"),
        (
            '{"prompt": "x", "top_p": 0.5}',
            ":1: top_p is not a parameter of strategy greedy; it belongs to sample",
        ),
        ('{"prompt": "x", "strategy": "nucleus", "top_p": 2}', ":1: top_p must be in (0, 1], got 2"),
        ('{"prompt": "x", "strategy": "magic"}', ":1: strategy must be one of greedy, sample, nucleus, beam"),
    ],
)
def test_a_bad_file(producer: Producer, tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_text(content)
    done = producer("run", path, "--model", TOY_MODEL, exit_code=2)
    assert message in done.stderr
    assert "bad.jsonl" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / ".nocturne").exists()


def test_a_folder_is_no_file(producer: Producer, tmp_path: Path) -> None:
    done = producer("run", tmp_path, "--model", TOY_MODEL, exit_code=2)
    assert "is a directory" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "hot"], "--temperature must be a number above 0"),
        (["--strategy", "magic"], "--strategy must be one of greedy, sample, nucleus, beam, model, got 'magic'"),
        (["--top-p", "0.5"], "--top-p is not a parameter of the strategies of this command"),
        (["--strategy", "nucleus", "--top-p", "1.5"], "--top-p must be in (0, 1], got 1.5"),
        (["--priority", "10"], "Input should be less than or equal to 9"),
        (["--no-such-option"], "No such option"),
        (["--stop", ""], "--stop must be a string"),
    ],
)
def test_wrong_options(producer: Producer, prompts: Path, tmp_path: Path, options: list[str], message: str) -> None:
    done = producer("run", prompts, "--model", TOY_MODEL, *options, exit_code=2)
    assert message in done.stderr
    assert not (tmp_path / ".nocturne").exists()


def test_a_wrong_environment_variable_is_named(producer: Producer, prompts: Path) -> None:
    done = producer("run", prompts, exit_code=2, NOCTURNE_MAX_NUM_SEQS="many")
    assert "NOCTURNE_MAX_NUM_SEQS" in done.stderr and "'many'" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["status"], ["sql", "select 1"], ["results"], ["show", "x", "y"], ["report"], ["cancel", "x"], ["retry", "x"],
        ["resume"], ["prune", "--older-than", "1d"],
    ],
    ids=lambda command: str(command[0]),
)  # fmt: skip
def test_asking_before_there_is_anything(producer: Producer, tmp_path: Path, command: list[str]) -> None:
    assert "there is no database at" in producer(*command, exit_code=2).stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("sqlite_database")
def test_an_unknown_run(producer: Producer, sqlite_url: str) -> None:
    assert "there is no run yet" in producer("results", "--database", sqlite_url, exit_code=2).stderr
    assert "there is no run 'x'" in producer("results", "x", "--database", sqlite_url, exit_code=2).stderr
    assert "--format must be one of" in producer(
        "results", "--database", sqlite_url, "--format", "xml", exit_code=2
    ).stderr  # fmt: skip


@pytest.mark.usefixtures("sqlite_database")
def test_wrong_sql(producer: Producer, sqlite_url: str) -> None:
    for statement, message in [
        ("selekt 1", "syntax error"),
        ("delete from runs", "refuses the statement"),
        ("select * from nowhere", "no such table"),
    ]:
        done = producer("sql", statement, "--database", sqlite_url, exit_code=2)
        assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.usefixtures("sqlite_database")
def test_a_reader_that_has_seen_enough_ends_quietly(sqlite_url: str) -> None:
    numbers = "with recursive n(x) as (select 1 union all select x + 1 from n where x < 200000) select x from n"
    command = f"{sys.executable} -m producer sql --format csv --database {sqlite_url} '{numbers}' | head -2"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=clean_environment(), cwd=ROOT)
    assert done.stdout.splitlines() == ["x", "1"]
    assert done.stderr == ""


@pytest.mark.usefixtures("sqlite_database")
def test_text_of_a_model_cannot_move_the_cursor(producer: Producer, sqlite_url: str) -> None:
    shown = producer("sql", "select char(27) || '[2J[bold]x' as t", "--database", sqlite_url).stdout
    assert "\x1b" not in shown
    assert "\\x1b[2J[bold]x" in shown


@pytest.mark.parametrize(
    ("command", "imported"),
    [
        (["producer", "--help"], "typer"),
        (["producer", "status"], "sqlalchemy"),
        (["worker", "start"], "typer"),
        (["worker", "start"], "pydantic_settings"),
    ],
)
def test_control_c_while_modules_are_imported(tmp_path: Path, command: list[str], imported: str) -> None:
    (tmp_path / f"{imported}.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(100)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=tmp_path, env=clean_environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
