"""Every command on every kind of wrong database: one line, exit code 2, and nothing made or changed in it.

The commands are those of the Typer app; `ARGUMENTS` must name each of them.
"""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import typer
from sqlalchemy import Engine, create_engine, make_url, text

from migrations.schema_state import REVISIONS, SchemaState, describe, examine
from migrations.upgrade import downgrade, head_revision, upgrade
from models.database import connection as database_connection
from models.database.connection import open_database
from producer.cli import app, main
from producer.results.view import command as view_command
from tests.conftest import TOY_MODEL
from tests.field.test_what_0_1_left import FIXTURES
from tests.support.capabilities import without_capabilities

#: Every command with arguments that fit `FIXTURES`.
ARGUMENTS = {
    "run": ["run", "prompts.jsonl", "--model", str(TOY_MODEL)],
    "submit": ["submit", "prompts.jsonl", "--model", str(TOY_MODEL), "--broker", "redis://127.0.0.1:1/0"],
    "status": ["status"],
    "top": ["top"],
    "results": ["results", "finished"],
    "sql": ["sql", "select count(*) from runs"],
    "show": ["show", "finished", "story-0001"],
    "report": ["report", "finished", "-o", "report.html"],
    "view": ["view", "finished"],
    "resume": ["resume", "interrupted"],
    "cancel": ["cancel", "interrupted"],
    "retry": ["retry", "interrupted"],
    "doctor": ["doctor", "--model", str(TOY_MODEL)],
    "pause": ["pause", "interrupted"],
    "unpause": ["unpause", "interrupted"],
    "prune": ["prune", "--older-than", "1s"],
    "db upgrade": ["db", "upgrade"],
}
READERS = ("status", "top", "results", "sql", "show", "report", "view")


def command_names(command: object, words: tuple[str, ...] = ()) -> Iterator[str]:
    """The words of every command of the app."""
    subcommands: dict[str, object] = getattr(command, "commands", {})
    if not subcommands:
        yield " ".join(words)
    for name, subcommand in subcommands.items():
        yield from command_names(subcommand, (*words, name))


def test_no_command_is_left_out() -> None:
    others = ["db reader", "models"]  # of PostgreSQL alone: any file is refused; of no database
    assert sorted(command_names(typer.main.get_command(app))) == sorted([*ARGUMENTS, *others])


def test_the_revisions_are_those_of_the_history(sqlite_url: str) -> None:
    assert REVISIONS[-1] == head_revision(open_database(sqlite_url))


@pytest.fixture(scope="session")
def good_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with a finished and an unfinished run."""
    path = tmp_path_factory.mktemp("good") / "good.db"
    script = (FIXTURES / "home.sql").read_text(encoding="utf-8").replace("@MODEL@", str(TOY_MODEL))
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()
    database = open_database(f"sqlite:///{path}")
    upgrade(database)
    database.dispose()
    return path.read_bytes()


Copied = Callable[[str], Path]


@pytest.fixture
def copied(tmp_path: Path, good_database: bytes, monkeypatch: pytest.MonkeyPatch) -> Copied:
    """Copies the good file into the working directory, under a name."""
    monkeypatch.chdir(tmp_path)

    def copy(name: str) -> Path:
        path = tmp_path / name
        path.write_bytes(good_database)
        return path

    return copy


def make_older(path: Path, revision: str) -> None:
    database = open_database(f"sqlite:///{path}")
    downgrade(database, revision)
    database.dispose()


def execute(path: Path, script: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()


#: Kind of wrong SQLite file -> a part of the line about it.
SQLITE_KINDS = {
    "folder": "it is a folder",
    "pipe": "it is not a file",
    "text": "it is not a SQLite file",
    "damaged": "it is not a SQLite file",
    "truncated": "the file is damaged",
    "other program's": "is not Nocturne's",
    "other program's with Alembic": "is not Nocturne's",
    "not whole": "not whole",
    "newer": "newer than this program",
    "two revisions": "not whole",
    "another's revision": "not whole",
    "a view in place of a table": "is not whole: it lacks workers.device, workers.draining_since, ",
    "a table in place of a view": "is not whole: it lacks job_results; restore a copy",
    "a column less": "is not whole: it lacks runs.source; restore a copy",
}

SCRIPTS = {
    "other program's": "create table notes (t)",
    "other program's with Alembic": "create table alembic_version (version_num); create table a (b)",
    "not whole": "drop table workers",
    "newer": "update alembic_version set version_num = '9999'",
    "two revisions": "insert into alembic_version values ('0001')",
    "another's revision": "drop table alembic_version; create table alembic_version (rev); "
    "insert into alembic_version values ('0009')",
    "a view in place of a table": "create table other as select * from workers; drop table workers; "
    "create view workers as select * from other",
    "a table in place of a view": "drop view job_results; create table job_results (a)",
    "a column less": "pragma legacy_alter_table = on; alter table runs rename column source to sources",
}


def make_wrong(path: Path, kind: str) -> None:
    """Makes the wrong file of a good one."""
    if kind.startswith("other"):
        path.unlink()
    if kind in SCRIPTS:
        execute(path, SCRIPTS[kind])
    elif kind in ("folder", "pipe"):
        path.unlink()
        (os.mkdir if kind == "folder" else os.mkfifo)(path)
    else:
        content = {"text": b"notes\n" * 99, "damaged": b"SQLite format 3\0" + b"\xff" * 5000}
        path.write_bytes(content.get(kind, path.read_bytes()[: 3 * 4096]))


def run_command(
    command: str, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a command in this process."""
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "x"}))
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(sys, "argv", ["producer", *ARGUMENTS[command], *options])
    monkeypatch.setattr(view_command, "serve", lambda *arguments: None)  # noqa: ARG005 - it ends with a signal alone
    engines: list[Engine] = []

    def create(*arguments: Any, **options: Any) -> Engine:
        engines.append(create_engine(*arguments, **options))
        return engines[-1]

    monkeypatch.setattr(database_connection, "create_engine", create)
    with pytest.raises(SystemExit) as ended:
        main()
    for engine in engines:  # the end of a command's process would close them
        engine.dispose()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def assert_refused(command: str, outcome: tuple[int, str, str], part: str) -> None:
    code, out, err = outcome
    if command == "doctor":  # its findings are its output
        assert code == 2 and err == "" and part in out and "BAD  database" in out, outcome
        return
    assert code == 2, outcome
    assert err.startswith("error: ") and err.count("\n") == 1 and part in err, err
    assert not Path("report.html").exists() and not Path(".nocturne").exists()


#: Kinds that the schema's examination tells from each other, which all commands share: a few commands are enough.
EXAMINED = ("two revisions", "another's revision", "a view in place of a table", "a table in place of a view")
CASES = [
    (command, kind)
    for kind in SQLITE_KINDS
    for command in ARGUMENTS
    if kind not in EXAMINED or command in ("run", "status", "doctor", "db upgrade")
]


@pytest.mark.parametrize(("command", "kind"), CASES)
def test_a_wrong_file_is_one_line(
    command: str,
    kind: str,
    tmp_path: Path,
    good_database: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "wrong #1 ü.db"
    path.write_bytes(good_database)
    make_wrong(path, kind)
    before = path.read_bytes() if path.is_file() else b""
    outcome = run_command(command, ["--database", f"sqlite:///{path.name}"], monkeypatch, capsys)
    if kind == "truncated" and outcome[0] != 2:
        assert command in ("status", "doctor", "db upgrade", "prune")  # they never came to the missing pages
        return
    assert_refused(command, outcome, SQLITE_KINDS[kind])
    assert path.name in outcome[1] + outcome[2]
    assert "%" not in outcome[2] and "mode=" not in outcome[2]
    assert (path.read_bytes() if path.is_file() else b"") == before
    made = {each.name for each in tmp_path.iterdir() if not each.name.endswith(("-shm", "-wal"))}  # SQLite, to read
    assert made == {path.name, "prompts.jsonl"}


@pytest.mark.parametrize("revision", REVISIONS[:-1])
@pytest.mark.parametrize("command", ARGUMENTS)
def test_an_older_file_is_told_to_be_upgraded(
    command: str,
    revision: str,
    copied: Copied,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = copied("older.db")
    make_older(path, revision)
    outcome = run_command(command, ["--database", "sqlite:///older.db"], monkeypatch, capsys)
    if command in ("sql", "db upgrade"):
        assert outcome[0] == 0, outcome
        return
    assert_refused(command, outcome, "run: producer db upgrade --database sqlite:///older.db")
    database = open_database("sqlite:///older.db", read_only=True)
    assert examine(database).revision == revision
    database.dispose()


def test_the_way_out_names_a_file_with_signs_of_urls(tmp_path: Path) -> None:
    path = tmp_path / "what is 41%? %41.db"
    path.touch()
    database = open_database(f"sqlite:///{str(path).replace('%', '%25').replace('?', '%3F')}")
    option = shlex.split(describe(examine(database), database))[-1]
    named = open_database(option)
    assert (named.url.database, database.url.database) == (str(path), str(path))
    named.dispose()
    database.dispose()


@pytest.mark.parametrize("command", [name for name in ARGUMENTS if name not in ("run", "db upgrade")])
def test_an_empty_file_stays_empty(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only `run` and `db upgrade` make a database of it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "empty.db"
    path.touch()
    outcome = run_command(command, ["--database", "sqlite:///empty.db"], monkeypatch, capsys)
    assert_refused(command, outcome, "is empty")
    assert path.read_bytes() == b""


@pytest.mark.parametrize("command", [name for name in ARGUMENTS if name not in ("run", "db upgrade")])
def test_a_file_that_is_not_there_is_not_made(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run_command(command, ["--database", "sqlite:///a/typo.db"], monkeypatch, capsys)
    assert_refused(command, outcome, "there is no database at a/typo.db")
    assert not (tmp_path / "a").exists()


#: URL -> a part of the line about it.
URLS = {
    "sqlite://": "a database in memory holds no run",
    "sqlite:///:memory:": "a database in memory holds no run",
    "sqlite:///night?.db": "write ? in a path as %3F",
    "sqlite:///good.db?mode=ro": "has options, which SQLite does not get",
    "sqlite+aiosqlite:///good.db": "sqlite+aiosqlite is not supported",
    f"sqlite:///{'a' * 300}.db": "File name too long",
    "sqlite:///a\0b.db": "it has a NUL character",
    "sqlite:///loop.db": "Too many levels of symbolic links",
    "postgresql+psycopg://u@127.0.0.1:1/d?color=red": "invalid connection option",
}


@pytest.mark.parametrize("command", ["run", "status", "db upgrade"])
@pytest.mark.parametrize("url", URLS)
def test_a_url_that_means_no_file_of_ours_is_one_line(
    url: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some come from `nocturne.toml` alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.db").touch()
    (tmp_path / "loop.db").symlink_to("loop.db")
    assert_refused(command, run_command(command, ["--database", url], monkeypatch, capsys), URLS[url])
    assert {path.name for path in tmp_path.iterdir()} == {"good.db", "loop.db", "prompts.jsonl"}
    assert (tmp_path / "good.db").stat().st_size == 0


@pytest.mark.parametrize("command", ["run", "status", "db upgrade"])
def test_a_folder_that_may_not_be_entered_is_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "closed").mkdir(mode=0)
    with without_capabilities():
        outcome = run_command(command, ["--database", "sqlite:///closed/night.db"], monkeypatch, capsys)
    assert_refused(command, outcome, "Permission denied")


@pytest.mark.parametrize("command", ARGUMENTS)
def test_a_locked_file_is_one_line(
    command: str,
    copied: Copied,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(database_connection, "SQLITE_BUSY_SECONDS", 0.05)
    path = copied("locked.db")
    other = sqlite3.connect(path)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    try:
        outcome = run_command(command, ["--database", "sqlite:///locked.db"], monkeypatch, capsys)
    finally:
        other.close()
    assert_refused(command, outcome, "another program holds it")


@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("command", ARGUMENTS)
def test_a_read_only_file_is_read_and_not_written(
    command: str,
    is_folder: bool,
    tmp_path: Path,
    good_database: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "night" / "kept.db"
    path.parent.mkdir()
    path.write_bytes(good_database)
    (path.parent if is_folder else path).chmod(0o500 if is_folder else 0o400)
    with without_capabilities():  # root may write everywhere
        outcome = run_command(command, ["--database", "sqlite:///night/kept.db"], monkeypatch, capsys)
    path.parent.chmod(0o700)
    if command in READERS or command == "doctor":
        assert outcome[0] == 0 or "BAD  run" in outcome[1], outcome
        assert "BAD  database" not in outcome[1], outcome
        return
    assert_refused(command, outcome, "check the rights of the file and of its folder")
    assert path.read_bytes() == good_database


def make_postgres(url: str, kind: str) -> str:
    """Makes the kind of wrong database, and returns the URL that a command is given."""
    database = open_database(url)
    if kind != "empty" and kind != "other program's":
        upgrade(database)
    if kind == "older":
        downgrade(database, REVISIONS[0])
    statements = {
        "other program's": ["CREATE TABLE notes (t text)"],
        "newer": ["UPDATE alembic_version SET version_num = '9999'"],
        "a view in place of a table": [
            "ALTER TABLE workers RENAME TO other",
            "CREATE VIEW workers AS SELECT * FROM other",
        ],
        "no rights": ["DROP ROLE IF EXISTS stranger", "CREATE ROLE stranger LOGIN"],
    }
    with database.begin() as connection:
        for statement in statements.get(kind, []):
            connection.execute(text(statement))
    database.dispose()
    return make_url(url).set(username="stranger").render_as_string() if kind == "no rights" else url


POSTGRES_KINDS = {
    "other program's": "is not Nocturne's",
    "newer": "newer than this program",
    "older": "run: producer db upgrade, with the same --database",
    "empty": "run: producer db upgrade, with the same --database",
    "no rights": "permission denied",
    "a view in place of a table": "is not whole: it lacks workers.device",
}


@pytest.mark.parametrize("kind", POSTGRES_KINDS)
def test_a_wrong_postgresql_database_is_one_line(
    kind: str,
    tmp_path: Path,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    url = make_postgres(postgres_url, kind)
    admin = create_engine(make_url(postgres_url).set(drivername="postgresql+psycopg"))
    before = examine(admin)
    for command in ARGUMENTS:
        if kind in ("empty", "older") and command in ("run", "db upgrade", "sql"):
            continue  # they may
        outcome = run_command(command, ["--database", url], monkeypatch, capsys)
        assert_refused(command, outcome, POSTGRES_KINDS[kind])
        assert examine(admin) == before
    admin.dispose()


@pytest.mark.parametrize("command", ["results", "show", "report"])
def test_a_text_of_an_answer_that_is_no_utf8_is_one_line(
    command: str,
    copied: Copied,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first rows of a page are read before the driver meets it."""
    path = copied("bad.db")
    execute(path, "update results set text = cast(x'61ff62' as text)")
    outcome = run_command(command, ["--database", "sqlite:///bad.db"], monkeypatch, capsys)
    assert_refused(command, outcome, "Could not decode to UTF-8 column 'text'")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
def test_a_postgresql_database_that_does_not_hold_every_text_is_one_line(
    encoding: str,
    tmp_path: Path,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"{make_url(postgres_url).database}_{encoding.lower()}"
    url = make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    admin = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"))
        for command in ARGUMENTS:
            outcome = run_command(command, ["--database", url], monkeypatch, capsys)
            assert_refused(command, outcome, f"its encoding is {encoding}")
        connection.execute(text(f"DROP DATABASE {name}"))
    admin.dispose()


def test_the_environments_encoding_is_not_asked(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    for url in (
        postgres_url,
        make_url(postgres_url).update_query_dict({"client_encoding": "LATIN1"}).render_as_string(),
    ):
        database = open_database(url)
        with database.connect() as connection:
            assert connection.execute(text("SELECT :text"), {"text": "ночь 夜"}).scalar_one() == "ночь 夜"
        database.dispose()


def test_a_database_without_rights_to_create_is_one_line(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_postgres(postgres_url, "empty")
    admin = open_database(postgres_url)
    with admin.begin() as connection:
        connection.execute(text("DROP ROLE IF EXISTS guest"))
        connection.execute(text("CREATE ROLE guest LOGIN"))
        connection.execute(text("REVOKE CREATE ON SCHEMA public FROM public"))
    admin.dispose()
    url = make_url(postgres_url).set(username="guest").render_as_string()
    assert_refused("db upgrade", run_command("db upgrade", ["--database", url], monkeypatch, capsys), "ask the owner")


def test_an_upgrade_names_the_view_that_is_in_its_way(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_postgres(postgres_url, "older")
    admin = open_database(postgres_url)
    with admin.begin() as connection:
        connection.execute(text("CREATE VIEW mine AS SELECT run_name, text FROM job_results"))
    outcome = run_command("db upgrade", ["--database", postgres_url], monkeypatch, capsys)
    assert_refused("db upgrade", outcome, "view mine depends on view job_results")
    assert examine(admin).revision == REVISIONS[0]
    with admin.begin() as connection:
        connection.execute(text("DROP VIEW mine"))
    assert run_command("db upgrade", ["--database", postgres_url], monkeypatch, capsys)[0] == 0
    admin.dispose()


def test_an_upgrade_names_the_table_that_is_in_its_way(
    copied: Copied, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied("older.db")
    make_older(path, REVISIONS[0])
    execute(path, "CREATE TABLE dead_letters (who text)")
    outcome = run_command("db upgrade", ["--database", "sqlite:///older.db"], monkeypatch, capsys)
    assert_refused("db upgrade", outcome, "table dead_letters already exists; nothing was changed")
    execute(path, "SELECT who FROM dead_letters; DROP TABLE dead_letters")
    assert run_command("db upgrade", ["--database", "sqlite:///older.db"], monkeypatch, capsys)[0] == 0


def test_an_extensions_views_are_nobodys_tables(postgres_url: str) -> None:
    """Managed databases come with some in the public schema."""
    database = open_database(postgres_url)
    with database.begin() as connection:
        available = connection.execute(text("SELECT name FROM pg_available_extensions")).scalars().all()
        if "pg_stat_statements" in available:
            connection.execute(text("CREATE EXTENSION pg_stat_statements"))
    assert examine(database).state == SchemaState.EMPTY
    database.dispose()


def test_a_wrong_statement_of_ours_is_no_fault_of_the_database(
    tmp_path: Path, good_database: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with a traceback, which an owner of the program needs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.db").write_bytes(good_database)
    monkeypatch.setattr("producer.results.status.recent_runs", lambda database: broken(database))
    monkeypatch.setattr(sys, "argv", ["producer", "status", "--database", "sqlite:///good.db"])
    with pytest.raises(Exception, match="no such column"):
        main()


def broken(database: object) -> list[object]:
    with database.connect() as connection:  # type: ignore[attr-defined]
        return list(connection.execute(text("SELECT nothing_of_that_name FROM runs")))


@pytest.mark.parametrize("seed", range(6))
def test_a_file_that_is_damaged_anywhere_is_read_or_refused(
    seed: int,
    tmp_path: Path,
    good_database: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    random = Random(seed)
    damaged = bytearray(good_database)
    for _ in range(random.choice([1, 3, 10])):
        at, length = random.randrange(len(damaged)), random.choice([20, 4096])
        damaged[at : at + length] = random.choice([bytes(length), random.randbytes(length)])
    for command in ("status", "results", "show", "report", "sql", "doctor"):
        (tmp_path / "damaged.db").write_bytes(damaged)
        code, _, err = run_command(command, ["--database", "sqlite:///damaged.db"], monkeypatch, capsys)
        assert code == 0 or command == "doctor" or (code == 2 and err.count("\n") == 1), err
