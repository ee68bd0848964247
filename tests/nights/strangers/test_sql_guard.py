"""`producer sql` reads and does nothing else, whoever logs in: tests look for side effects, not for errors."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, make_url

from migrations.reader_role import ReaderRefused, make_reader_role
from migrations.upgrade import upgrade
from models.database.connection import open_database
from models.settings import Settings
from producer.errors import UsageError
from producer.results.database import check_reading_role, readable_database
from producer.results.sql.statement import answer
from tests.conftest import Producer
from tests.support.processes import wait_until
from tests.support.table_rows import insert_run, run_sql

LOGINS = ("superuser", "owner", "reader")

#: A file that is not there, which the user of the server could make.
MARK = f"{tempfile.gettempdir()}/nocturne-attack-{uuid4().hex}"

#: Statements and parts of statements that do more than read where they are let through.
ATTACKS = [
    # More than one statement, or one that is no SELECT.
    f"do $$ begin perform set_config('role', session_user, false); copy (select 1) to program 'touch {MARK}'; end $$",
    f"copy (select 1) to program 'touch {MARK}'",
    f"copy (select 1) to '{MARK}'",
    f"select 1; copy (select 1) to program 'touch {MARK}'",
    "select 1; commit; drop table victims",
    "select 1) select 1; drop table victims; --",
    "commit",
    "end; drop table victims",
    "set role postgres",
    "reset role",
    "set session authorization default",
    "set transaction read write",
    "begin read write",
    "lock table victims in access exclusive mode",
    "call something()",
    "prepare p as delete from victims",
    "execute p",
    "listen something",
    "notify something",
    "vacuum victims",
    "explain analyze delete from victims",
    "create table stolen as select 1",
    "select 1 into stolen",
    "with gone as (delete from victims returning 1) select * from gone",
    "with new as (insert into victims values (9) returning 1) select * from new",
    "select * from victims for update",
    "truncate victims",
    "load 'something'",
    "drop table victims",
    "alter system set work_mem = '1MB'",
    # Functions, each called in one of the ways that the grammar has.
    *(
        way.format(call=call)
        for call in (
            "set_config('role', session_user, false)",
            "set_config('work_mem', '77kB', false)",
            "set_config('transaction_read_only', 'off', false)",
            "pg_terminate_backend({bystander})",
            "pg_cancel_backend({bystander})",
            "pg_advisory_lock(77)",
            "pg_try_advisory_lock(77)",
            "pg_advisory_xact_lock(77)",
            "pg_create_physical_replication_slot('stolen', true)",
            "pg_create_logical_replication_slot('stolen', 'test_decoding')",
            "lo_create(77)",
            "lo_import('/etc/passwd')",
            "lo_from_bytea(77, 'x')",
            f"lo_export(77, '{MARK}')",
            "pg_read_file('PG_VERSION')",
            "pg_read_binary_file('PG_VERSION')",
            "pg_ls_dir('.')",
            "pg_stat_file('PG_VERSION')",
            "nextval('numbers')",
            "setval('numbers', 77)",
            "pg_notify('something', 'x')",
            "pg_logical_emit_message(false, 'a', 'b')",
            "pg_switch_wal()",
            "pg_create_restore_point('x')",
            "pg_reload_conf()",
            "pg_rotate_logfile()",
            "pg_stat_reset()",
            "pg_export_snapshot()",
            "pg_log_backend_memory_contexts({bystander})",
            "query_to_xml('select set_config(''work_mem'', ''77kB'', false)', true, true, '')",
            "ts_stat('select to_tsvector(setval(''numbers'', 77)::text)')",
            "owners_own()",
        )
        for way in (
            "select {call}",
            "select 1 limit length(({call})::text)",
            "select * from {call} as stolen",
            "values (({call})::text)",
            "select 1 where ({call}) is not null",
        )
    ),
    "select pg_catalog . pg_advisory_lock (77)",
    'select "pg_advisory_lock"(77)',
    "select pg_advisory_lock/* (a) */--b\n(77)",
    "select PG_ADVISORY_LOCK(77)",
    'select U&"pg\\005fadvisory_lock"(77)',
    "select (77).pg_advisory_lock",
    "select a.b.pg_advisory_lock from (select row(77) as b) a",
    "select e'\\'' , pg_advisory_lock(77) --'",
    "select e'a'\n'b\\' , pg_advisory_lock(77) --'",
    "select 'a\\' , pg_advisory_lock(77) --'",
    "select $a$ $b$ $a$, pg_advisory_lock(77)",
    "select $a$x$a$, pg_advisory_lock(77), $a$y$a$",
    "select /* /* */ 'still a comment */ */ pg_advisory_lock(77)",
    "select u&'\\0027', pg_advisory_lock(77)",
    "select 1$$a$$, pg_advisory_lock(77)",
    "select count(pg_advisory_lock(n)) over () from generate_series(77, 78) n",
    "select lag(1, pg_try_advisory_lock(77)::int) over ()",
    "table victims order by pg_try_advisory_lock(77)",
    "select array(select pg_advisory_lock(77)::text)",
    "with recursive r as (select 1 union select pg_try_advisory_lock(77)::int from r) select * from r",
    "select * from json_table('[1]', '$[*]' columns (a int path '$' default pg_try_advisory_lock(77)::int on empty)) j",
]


@dataclass
class Server:
    """A database with something to lose, a bystander's session, and the URL of each login."""

    admin: Engine
    bystander: Any
    urls: dict[str, str]

    def state(self) -> dict[str, Any]:
        """All that an attack might change."""
        questions = {
            "locks": "select count(*) from pg_locks join pg_stat_activity using (pid) where backend_type = "
            "'client backend' and (locktype = 'advisory' or mode = 'AccessExclusiveLock')",  # autovacuum has some too
            "slots": "select count(*) from pg_replication_slots",
            "large objects": "select count(*) from pg_largeobject_metadata",
            "sequence": "select last_value, is_called from numbers",
            "tables": "select count(*) from pg_class where relnamespace = 'public'::regnamespace",
            "rows": "select count(*) from victims",
            "called": "select count(*) from calls",
            "prepared": "select count(*) from pg_prepared_statements where name = 'p'",
            "roles": "select string_agg(rolname || rolsuper::text, ' ' order by rolname) from pg_roles",
            "start of the configuration": "select pg_conf_load_time()",
            "resets": "select stats_reset from pg_stat_database where datname = current_database()",
        }
        with self.admin.connect() as connection:
            found = {name: tuple(connection.exec_driver_sql(text).one()) for name, text in questions.items()}
        return found | {"bystander": self.bystander.execute("select 1").fetchone(), "file": Path(MARK).exists()}


@pytest.fixture
def server(postgres_url: str) -> Iterator[Server]:
    """Roles are the server's, not the database's: their names hold that of the database."""
    import psycopg

    url = make_url(postgres_url)
    owner, reader = f"owner_{url.database}", f"reader_{url.database}"
    admin = open_database(postgres_url)
    with admin.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {owner} LOGIN CREATEROLE")
        connection.exec_driver_sql(f"ALTER DATABASE {url.database} OWNER TO {owner}")
        connection.exec_driver_sql(f"ALTER SCHEMA public OWNER TO {owner}")
    owning = open_database(url.set(username=owner).render_as_string(hide_password=False))
    upgrade(owning)
    insert_run(owning, 3)
    with owning.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE victims (n int)")
        connection.exec_driver_sql("INSERT INTO victims VALUES (1), (2)")
        connection.exec_driver_sql("CREATE TABLE calls (n int)")
        connection.exec_driver_sql("CREATE SEQUENCE numbers")
        # Called stable, as some extensions call functions that run any statement.
        connection.exec_driver_sql(
            "CREATE FUNCTION owners_own() RETURNS int STABLE LANGUAGE sql AS 'SELECT pg_try_advisory_lock(77)::int'"
        )
    make_reader_role(owning, reader, "secret word")
    bystander = psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True)
    names = {"superuser": url.username, "owner": owner, "reader": reader}
    urls = {
        login: url.set(username=name, password="secret word").render_as_string(hide_password=False)
        for login, name in names.items()
    }
    yield Server(admin, bystander, urls)
    bystander.close()
    owning.dispose()
    with admin.begin() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {reader}, {owner} CASCADE")
        connection.exec_driver_sql(f"ALTER DATABASE {url.database} OWNER TO {url.username}")
        connection.exec_driver_sql(f"DROP ROLE {reader}, {owner}")
    admin.dispose()


@pytest.mark.parametrize("login", LOGINS)
def test_an_attack_changes_nothing_on_the_server(server: Server, login: str) -> None:
    reader = open_database(server.urls[login], read_only=True)
    before, bystander = server.state(), server.bystander.info.backend_pid
    attacks = [attack.replace("{bystander}", str(bystander)) for attack in ATTACKS]
    for begin in range(0, len(attacks), 10):
        some = attacks[begin : begin + 10]
        for statement in some:
            with suppress(UsageError):
                run_sql(reader, statement)
        assert server.state() == before, some
    assert run_sql(reader, "select current_setting('work_mem')")[1] != [("77kB",)]
    assert run_sql(reader, "select count(*) from jobs")[1] == [(3,)]
    reader.dispose()


@pytest.mark.parametrize("login", LOGINS)
def test_what_only_reads_goes_through(server: Server, login: str) -> None:
    reader = open_database(server.urls[login], read_only=True)
    for statement, value in {
        "select count(*) from jobs where custom_id like '%job%' -- pg_sleep(": 3,
        "select 7 % 3": 1,
        "select 'pg_read_file(1)' || $$ set_config( $$": "pg_read_file(1) set_config( ",
        "with pg_sleepless (a, b) as (values (1, 2)) select a + b from pg_sleepless;": 3,
        "select count(*) from (select random(), gen_random_uuid(), now(), clock_timestamp()) as several": 1,
        "select count(*) from job_results where params ->> 'strategy' is not null": 3,
        "select max(length(to_char(created_at, 'YYYY-MM-DD'))) from runs": 10,
        "select pg_total_relation_size('jobs') > 0": True,
        'select (r)."count" from (select count(*) from jobs) as r': 3,
        "select n from generate_series(1, 5000) as n offset 4999": 5000,
    }.items():
        assert run_sql(reader, statement)[1] == [(value,)], statement
    reader.dispose()


def test_superusers_are_refused_and_may_say_yes_once(server: Server, producer: Producer, tmp_path: Path) -> None:
    at = ("--database", server.urls["superuser"])
    assert "is a superuser of PostgreSQL" in producer("report", "-o", tmp_path / "r.html", *at, exit_code=2).stderr
    assert not (tmp_path / "r.html").exists()
    assert "is a superuser of PostgreSQL" in producer("sql", "select 1", *at, exit_code=2).stderr
    assert producer("sql", "select 1 as n", "--format", "csv", *at, "--as-superuser").stdout == "n\n1\n"
    urls = {"NOCTURNE_DATABASE": server.urls["superuser"], "NOCTURNE_READ_DATABASE": server.urls["reader"]}
    told = producer("sql", "select count(*) as n from jobs", "--format", "csv", **urls)
    assert told.stdout == "n\n3\n"


def test_a_member_of_a_superuser_s_role_is_one(server: Server, postgres_url: str) -> None:
    url = make_url(server.urls["owner"])
    with server.admin.begin() as connection:
        connection.exec_driver_sql(f'GRANT "{make_url(postgres_url).username}" TO {url.username}')
    member = open_database(server.urls["owner"], read_only=True)
    with pytest.raises(UsageError, match="superuser"):
        check_reading_role(member, as_superuser=False)
    member.dispose()


def test_the_reader_s_role(server: Server, producer: Producer, tmp_path: Path) -> None:
    owner, name = open_database(server.urls["owner"]), make_url(server.urls["reader"]).username
    told = producer("db", "reader", name, "--database", server.urls["owner"])
    assert make_url(told.stdout.strip()).username == name and "may read" in told.stderr
    (tmp_path / "password").write_text("pass word\n")
    told = producer("db", "reader", name, "--database", server.urls["owner"], "--password-file", tmp_path / "password")
    assert "pass word" not in told.stdout + told.stderr
    with owner.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE later (n int)")
    reading = readable_database(Settings(read_database=server.urls["reader"]))
    assert run_sql(reading, "select count(*) from later")[1] == [(0,)]
    with pytest.raises(UsageError, match="may do more than read"):
        run_sql(reading, "select nextval('numbers')")
    with pytest.raises(ReaderRefused, match="exists and may do more than read"):
        make_reader_role(owner, str(owner.url.username), "x")
    for right in ("INSERT ON jobs", "USAGE ON SEQUENCE numbers", "CREATE ON SCHEMA public"):
        with owner.begin() as connection:
            connection.exec_driver_sql(f"GRANT {right} TO {name}")
        with pytest.raises(ReaderRefused, match="exists and may do more than read"):
            make_reader_role(owner, str(name), "x")
        with owner.begin() as connection:
            connection.exec_driver_sql(f"REVOKE {right} FROM {name}")
    make_reader_role(owner, str(name), "x")
    with server.admin.begin() as connection:
        connection.exec_driver_sql(f"ALTER ROLE {owner.url.username} NOCREATEROLE")
    with pytest.raises(ReaderRefused, match="may not make roles .* let an administrator run: CREATE ROLE"):
        make_reader_role(owner, f"other_{name}", "x")
    owner.dispose()
    reading.dispose()


ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"


def test_an_endless_statement_is_stopped(database: Engine) -> None:
    reader = open_database(database.url.render_as_string(hide_password=False), read_only=True)
    with pytest.raises(UsageError, match="takes longer than 0.3 s and was stopped; give more with --timeout"):
        with answer(reader, ENDLESS, 0.3):
            raise AssertionError
    assert run_sql(reader, "select 1")[1] == [(1,)]
    reader.dispose()


def running_fetches(database: Engine) -> int:
    with database.connect() as connection:
        found = connection.exec_driver_sql(
            "select count(*) from pg_stat_activity where left(query, 5) = 'FETCH' and state = 'active'"
        )
        return int(found.scalar_one())


def test_ctrl_c_stops_the_statement(database: Engine) -> None:
    reader = open_database(database.url.render_as_string(hide_password=False), read_only=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    timer = Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        with answer(reader, ENDLESS, 300.0):
            raise AssertionError
    timer.join()
    if database.dialect.name == "postgresql":
        wait_until(lambda: not running_fetches(database))
    reader.dispose()


@pytest.mark.usefixtures("sqlite_database")
def test_sqlite_calls_known_functions_alone(sqlite_url: str, tmp_path: Path) -> None:
    reader = open_database(sqlite_url, read_only=True)
    for statement in (
        "select load_extension('x')", "select LOAD_EXTENSION('x')", "select fts3_tokenizer('x')",
        "select sqlite_log(1, 'x')", "select readfile('/etc/passwd')", "select writefile('x', 'y')",
        f"attach '{tmp_path / 'other.db'}' as other", f"vacuum into '{tmp_path / 'other.db'}'", "begin", "savepoint s",
        "pragma query_only = off", "pragma journal_mode = delete", "pragma user_version = 7", "pragma wal_checkpoint",
        "pragma writable_schema = on", "detach main", "reindex", "analyze", "create virtual table v using fts5(x)",
        "select zeroblob(2000000000)", "select * from pragma_journal_mode('delete')",
    ):  # fmt: skip
        with pytest.raises(UsageError):
            run_sql(reader, statement)
    assert not (tmp_path / "other.db").exists()
    assert run_sql(reader, "select 'cat' like '%cat%', 7 % 3")[1] == [(1, 1)]
    for name in ("date('now')", "json_group_array(1)", "group_concat(1)", "round(1.5)", "row_number() over ()"):
        assert run_sql(reader, f"select {name}")[1]
    reader.dispose()


CONFUSING = [
    "'",
    '"',
    "$$",
    "$a$",
    "--",
    "/*",
    "*/",
    "\n",
    "\\",
    "e'",
    "u&'",
    'u&"',
    " ",
    ",",
    "1",
    "x",
    "b'",
    "(",
    ")",
]


def test_no_text_around_a_call_hides_it_from_the_lexer(server: Server) -> None:
    """The server lexes the same text: where it finds the call and we do not, it takes the lock."""
    reader = open_database(server.urls["superuser"], read_only=True)
    before = server.state()["locks"]

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.sampled_from([*CONFUSING, "pg_advisory_lock(77)"])), st.lists(st.sampled_from(CONFUSING)))
    @example(["e'", "\\", "'", ","], ["--"])
    def check(before_call: list[str], behind: list[str]) -> None:
        statement = f"select {''.join(before_call)} pg_advisory_lock(77) {''.join(behind)}"
        try:
            with answer(reader, statement) as found:
                values = [str(value) for row in found.rows for value in row]
        except UsageError:
            return
        # Void is an empty string: a call that was hidden in a string is there as text.
        assert any("pg_advisory_lock" in value for value in values) or "--" in statement or "/*" in statement, statement

    check()
    assert server.state()["locks"] == before
    reader.dispose()
