"""A home of any name is one and the same database for every command."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sqlite3
from pathlib import Path

import pytest

from migrations.upgrade import upgrade
from models.database.connection import open_database
from models.settings import Settings, read_settings
from producer.home import home_options
from producer.runs.broker import check_broker
from producer.runs.embedded import embedded_broker
from tests.conftest import TOY_MODEL, Producer
from tests.support.processes import RedisServer
from worker.celery import create_app

NAMES = [
    "a#b",
    "a?b",
    "100%",
    "a%23b",
    "two words",
    "new\nline",
    "Grüße-夜",
    "a&b=c",
    "quote'\"",
    "a+b",
    "?mode=ro",
    "#",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_home_of_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(home=Path(name))
    passed_on = Settings(database=settings.database_url)  # as a worker is told
    writing = open_database(passed_on.database_url)
    upgrade(writing)
    writing.dispose()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    reading = open_database(settings.database_url, read_only=True)
    with reading.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from runs").scalar_one() == 0
    reading.dispose()
    with sqlite3.connect(tmp_path / name / "nocturne.db") as file:
        assert file.execute("select count(*) from alembic_version").fetchone() == (1,)
    file.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_suggested_command_finds_the_home_again(name: str) -> None:
    command = f"producer resume r{home_options(read_settings(home=Path(name)))}"
    assert shlex.split(command) == ["producer", "resume", "r", "--home", name]
    url = f"sqlite:///{name}/x.db".replace("?", "%3F")  # a question mark begins a URL's options
    command = f"producer resume r{home_options(read_settings(home=Path(name), database=url))}"
    assert shlex.split(command)[3:] == ["--home", name, "--database", url]


def test_the_suggested_command_has_what_the_next_one_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOCTURNE_DATABASE", "sqlite:///x.db")
    assert home_options(read_settings()) == ""
    url = "postgresql://me:secret@host/db"
    assert home_options(read_settings(database=url)) == " --database 'postgresql://me:***@host/db'"


def test_names_that_are_not_utf_8(producer: Producer, tmp_path: Path) -> None:
    """Words of a shell are bytes; a database stores text."""
    odd = os.fsdecode(b"odd\xff")
    (tmp_path / f"{odd}.jsonl").write_text('{"prompt": "x", "max_new_tokens": 1}\n')
    producer("run", f"{odd}.jsonl", "--model", TOY_MODEL, "--home", "home", "--quiet")
    (run,) = json.loads(producer("status", "--json", "--home", "home").stdout)
    assert run["source"] == "odd\\udcff.jsonl" and run["succeeded"] == 1
    for options, message in (
        (["--home", odd], "--home: must be a path in utf-8"),
        (["--name", odd], "--name must be a text in UTF-8"),
        (["--name", " "], "--name must be a text in UTF-8 that is not blank"),
        (["--adapter", "nowhere"], "the adapter '"),
    ):
        refused = producer("run", f"{odd}.jsonl", "--model", TOY_MODEL, *options, exit_code=2).stderr
        assert refused.startswith(f"error: {message}") and refused.count("\n") == 1
    shutil.copytree(TOY_MODEL, tmp_path / odd / "copy")  # its tokenizer is read by its path
    refused = producer("run", f"{odd}.jsonl", "--model", tmp_path / odd / "copy", exit_code=2).stderr
    assert "is not UTF-8; rename the folder" in refused and not (tmp_path / ".nocturne").exists()


def test_commands_agree_on_a_home_with_a_number_sign(producer: Producer, tmp_path: Path) -> None:
    producer("db", "upgrade", "--home", "a#b?c%")
    producer("status", "--home", tmp_path / "a#b?c%")
    assert [path.name for path in tmp_path.iterdir()] == ["a#b?c%"]


def test_a_run_in_a_home_of_odd_characters(producer: Producer, tmp_path: Path) -> None:
    """Its Redis is reached by a URL, and `cancel` of another process finds it too."""
    home = "two words#a?b%23\nGrüße;c"
    producer("run", "-p", "x", "--max-new-tokens", 1, "--model", TOY_MODEL, "--home", home, "--quiet")
    (run,) = json.loads(producer("status", "--json", "--home", home).stdout)
    assert run["succeeded"] == 1 and [path.name for path in tmp_path.iterdir()] == [home]


@pytest.mark.parametrize("name", NAMES)
def test_the_embedded_redis_of_any_home_is_reached(name: str, tmp_path: Path) -> None:
    home = tmp_path / name
    home.mkdir()
    with RedisServer(home):
        broker = embedded_broker(Settings(home=home))
        assert broker is not None and check_broker(broker) is not None
        with create_app(Settings(broker=broker)).connection_for_read() as connection:
            assert connection.default_channel.client.ping()
