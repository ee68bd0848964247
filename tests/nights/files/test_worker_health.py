"""`worker health` goes by the worker's row and the database's clock; settings come from files of secrets too."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, update
from typer.testing import CliRunner

from models.database.clock import database_timestamp
from models.schema.worker import Worker
from models.settings import InvalidSettings, read_settings
from worker.cli import app
from worker.storage.registry import Registry, WorkerLoad


def health(database: Engine, *arguments: str) -> tuple[int, str]:
    url = database.url.render_as_string(hide_password=False)
    done = CliRunner().invoke(app, ["health", "--database", url, *arguments])
    return done.exit_code, done.output.strip()


def register(database: Engine, name: str, monkeypatch: pytest.MonkeyPatch, host: str = "here") -> Registry:
    monkeypatch.setattr("platform.node", lambda: "here")
    registry = Registry(database, name, 30.0)
    registry.register(host=host, device="cpu", model="m", max_num_seqs=1)
    return registry


def test_a_worker_is_healthy_while_its_row_is_renewed(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = register(database, "w-cpu-0", monkeypatch)
    assert health(database) == health(database, "w") == health(database, "w-cpu-0") == (0, "w-cpu-0")
    assert health(database, "w-c")[0] == 1
    with database.begin() as connection:
        connection.execute(update(Worker).values(seen_at=database_timestamp(61)))
    assert health(database) == (1, "worker: no worker of here has given a sign of life within 60 s")
    assert health(database, "--within", "90")[0] == 0
    registry.heartbeat([], WorkerLoad())
    assert health(database)[0] == 0
    registry.sign_off()
    assert health(database, "w") == (1, "worker: no worker w has given a sign of life within 60 s")


def test_another_hosts_worker_is_no_sign_of_life(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    register(database, "w", monkeypatch, host="elsewhere")
    assert health(database)[0] == 1
    assert health(database, "w")[0] == 0, "named, it may be anywhere"


def test_a_database_that_is_away_is_told_in_a_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["health", "--home", str(tmp_path)])
    assert done.exit_code == 1 and len(done.output.splitlines()) == 1
    assert "there is no database at" in done.output


def test_a_database_without_our_tables_is_told_in_a_line(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE things (name TEXT)")
    done = CliRunner().invoke(app, ["health", "--database", f"sqlite:///{tmp_path}/other.db"])
    assert done.exit_code == 1 and len(done.output.splitlines()) == 1
    assert "is not Nocturne's" in done.output


def test_a_setting_comes_from_the_file_that_a_variable_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "url").write_text("redis://:secret@redis/0\n")
    (tmp_path / "nocturne.toml").write_text('broker = "redis://toml/0"')
    (tmp_path / "nocturne.toml").chmod(0o600)
    monkeypatch.setenv("NOCTURNE_BROKER_FILE", str(tmp_path / "url"))
    settings = read_settings()
    assert settings.broker == "redis://:secret@redis/0"
    assert settings.origins == {"broker": "NOCTURNE_BROKER_FILE of the environment"}
    monkeypatch.setenv("NOCTURNE_BROKER", "redis://environment/0")
    assert read_settings().broker == "redis://environment/0"
    assert read_settings(broker="redis://flag/0").broker == "redis://flag/0"


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "No such file"), (b"", "a value in one line"), (b"a\nb", "a value in one line"), (b"\xff", "not UTF-8")],
)
def test_a_file_without_a_value_is_named(
    content: Any, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "url").write_bytes(content)
    monkeypatch.setenv("NOCTURNE_DATABASE_FILE", str(tmp_path / "url"))
    with pytest.raises(InvalidSettings, match=rf"^NOCTURNE_DATABASE_FILE names .*url, which .*{problem}"):
        read_settings()
