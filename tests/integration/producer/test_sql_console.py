"""The console of `producer sql`: its commands on both databases, its keys, and what a pipe gets."""

from __future__ import annotations

import json
import math
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from prompt_toolkit.input.defaults import create_pipe_input
from prompt_toolkit.output import DummyOutput
from sqlalchemy import Engine

from migrations.views import view_definitions
from models.database.connection import open_database
from models.schema.tables import Base
from producer.errors import UsageError
from producer.results.sql import console
from producer.results.sql.catalog import MEANINGS
from producer.results.sql.console import run_console
from producer.results.sql.output import SqlOutput
from producer.results.sql.shell import COMMANDS, Leave, Shell
from tests.support.processes import clean_environment
from tests.support.table_rows import insert_run

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def reader(database: Engine) -> Iterator[Engine]:
    insert_run(database, 2, metadata={"topic": "cats"})
    reader = open_database(database.url.render_as_string(hide_password=False), read_only=True)
    yield reader
    reader.dispose()


def test_columns_of_one_name_keep_their_values(reader: Engine, capsys: Capture) -> None:
    Shell(reader, SqlOutput("json")).run("select 1 as a, 2 as a, 3 as a_2, 4 as a")
    assert json.loads(capsys.readouterr().out) == [{"a": 1, "a_3": 2, "a_2": 3, "a_4": 4}]


@pytest.mark.parametrize("timeout", [3e6, 1e300, math.inf])
def test_a_statement_may_take_forever(reader: Engine, capsys: Capture, timeout: float) -> None:
    Shell(reader, SqlOutput("csv", timeout)).run("select 1 as a")
    assert capsys.readouterr().out == "a\n1\n"


def test_every_command_on_both_databases(reader: Engine, capsys: Capture) -> None:
    shell = Shell(reader, SqlOutput())
    shell.run(".tables")
    listed = capsys.readouterr().out
    assert {line.split()[0] for line in listed.splitlines()[1:]} == set(MEANINGS)
    assert set(MEANINGS) == {*view_definitions("sqlite"), *Base.metadata.tables, "alembic_version"}
    shell.run("\\d job_events")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][:4] == ["column", "id", "job_id", "at"]
    shell.run(".schema")
    schema = capsys.readouterr().out
    assert all(f"{kind} {name}" in schema for kind, name in [("TABLE", "jobs"), ("VIEW", "job_results")])
    shell.run(".schema runs")
    assert capsys.readouterr().out.startswith("CREATE TABLE runs (")
    shell.run(".help")
    told = capsys.readouterr().out
    assert all(name in told for command in COMMANDS for name in command.names)
    shell.run(".examples topics")
    assert capsys.readouterr().out.endswith("topic  jobs\ncats      2\n")
    shell.run("select 1 as a; select 2 as b;")
    assert capsys.readouterr().out == "a\n1\nb\n2\n"


def test_settings_of_the_session(sqlite_database: Engine, capsys: Capture) -> None:
    reader = open_database(str(sqlite_database.url), read_only=True)
    shell = Shell(reader, SqlOutput())
    for typed in ("\\x", ".mode csv", "\\x auto", ".pager off"):
        shell.run(typed)
    assert capsys.readouterr().out == "vertical rows: on\nformat: csv\nvertical rows: auto\npager: off\n"
    assert shell.output == SqlOutput(format="csv", has_pager=False)
    for wrong, told in {
        ".mode xml": "give one of table, vertical", ".nothing": "there is no command .nothing; .help lists them",
        ".schema nowhere": "there is no table or view 'nowhere'", ".help me": ".help takes no argument",
        ".examples nope": "there are strategies, uncertain",
    }.items():  # fmt: skip
        with pytest.raises(UsageError, match=told):
            shell.run(wrong)
    for left in ("exit", ".quit", "\\q"):
        with pytest.raises(Leave):
            shell.run(left)
    reader.dispose()


def test_keys(sqlite_database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """A statement of three lines, a dropped one, an error, a dropped command, and the end."""
    monkeypatch.setattr(console, "HISTORY", tmp_path / "history")
    reader = open_database(str(sqlite_database.url), read_only=True)
    with create_pipe_input() as keys:
        keys.send_text("select 1 as one,\r';' as mark\r;\r")
        keys.send_text("select half\x03")
        keys.send_text("select nonsense;\r")
        keys.send_text(".tabl\x03select 2 as two;\r")
        keys.send_text("\x04")
        run_console(reader, Shell(reader, SqlOutput()), input=keys, output=DummyOutput())
    printed = capsys.readouterr()
    assert printed.out == "one  mark\n  1  ;\ntwo\n  2\n"
    assert "error: the database refuses the statement: no such column: nonsense" in printed.err
    typed = [line for line in (tmp_path / "history").read_text().splitlines() if line.startswith("+")]
    assert typed[:3] == ["+select 1 as one,", "+';' as mark", "+;"] and "+select half" not in typed
    assert stat.S_IMODE((tmp_path / "history").stat().st_mode) == 0o600
    reader.dispose()


def test_a_terminal_and_a_pipe(sqlite_database: Engine) -> None:
    """On a terminal wide rows are vertical and counted; the same in a pipe is a table, whole."""
    statement = "select 1 as n, replace(hex(zeroblob(200)), '00', 'word ') as text"
    command = [sys.executable, "-m", "producer", "sql", statement, "--database", str(sqlite_database.url)]
    environment = clean_environment() | {"COLUMNS": "60", "LINES": "40", "PAGER": "cat"}
    piped = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert piped.stdout == f"n  text\n1  {'word ' * 200}".rstrip() + "\n" and piped.stderr == ""
    ours, theirs = pty.openpty()
    ran = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the terminal's end
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert ran.wait() == 0
    lines = shown.decode().replace("\r", "").splitlines()
    assert lines[0] == "─[ 1 of 1 ]" + "─" * 49 and lines[1] == "n     1"
    assert all(len(line) <= 60 for line in lines) and "".join(lines[2:-1]).count("word") == 200
    assert lines[-1].startswith("1 row in ")
