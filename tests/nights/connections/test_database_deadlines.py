"""A database that goes mute, waits or refuses: every kind of call ends in its time, and says which fault it was."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import fields
from urllib.parse import quote
from uuid import uuid4

import pytest
from psycopg import OperationalError
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DBAPIError

from migrations.upgrade import upgrade
from models.database.bulk_insert import insert_rows
from models.database.connection import limited, open_database
from models.database.deadlines import CLIENT_MARGIN_SECONDS, Call, Deadlines, stretched
from models.database.faults import is_data_fault, is_outage, is_timeout
from models.database.postgresql import TimedConnection, _end_abandoned
from producer.results.sql.statement import answer
from tests.nights.connections.conftest import lose_a_transaction
from tests.nights.connections.tcp_relay import TcpRelay
from worker.storage.outages import DatabaseOutages

#: They pass soon, and a busy machine does in them what does not wait for anybody.
SHORT = Deadlines(connect=5.0, claim=2.0, commit=2.0, copy=2.0, query=2.0, command=2.0, lock=2.0)


@pytest.fixture
def relayed(relayed_url: str) -> Iterator[Engine]:
    engine = open_database(relayed_url, deadlines=SHORT)
    with limited(engine, Call.MIGRATION).begin() as connection:
        connection.execute(text("CREATE TABLE t (a int PRIMARY KEY, b text)"))
        connection.execute(text("INSERT INTO t VALUES (1, 'one')"))
    yield engine
    engine.dispose()


def raised_by(engine: Engine, statement: str) -> DBAPIError:
    with pytest.raises(DBAPIError) as raised, engine.begin() as connection:
        connection.execute(text(statement))
    return raised.value


@pytest.mark.parametrize("call", [Call.CLAIM, Call.COMMIT, Call.QUERY, Call.COMMAND])
def test_a_mute_peer_is_given_up_and_its_locks_are_freed(relayed: Engine, postgres_relay: TcpRelay, call: Call) -> None:
    """The peer's kernel acknowledges; its server keeps the transaction until the next connection ends it."""
    engine = limited(relayed, call)
    error = lose_a_transaction(engine, postgres_relay)
    assert "did not answer" in str(error) and is_outage(error) and not is_data_fault(error)
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = '60s'")
        assert connection.execute(text("UPDATE t SET b = 'two' RETURNING a")).scalar_one() == 1


def test_a_mute_peer_of_a_copy_is_given_up(relayed: Engine, postgres_relay: TcpRelay) -> None:
    """More than the kernels' buffers hold: the client waits to write. The server waits for the rest without a limit."""
    with pytest.raises(DBAPIError) as raised, limited(relayed, Call.COMMIT).begin() as connection:
        connection.execute(text("SELECT a FROM t FOR UPDATE"))
        rows = ((number, "x" * 100_000) for number in range(2, 1000))
        postgres_relay.mute()
        insert_rows(connection, "t", ["a", "b"], rows)
    assert is_outage(raised.value) and not is_data_fault(raised.value)
    with relayed.begin() as connection:
        connection.exec_driver_sql("SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = '60s'")
        assert connection.execute(text("SELECT count(*) FROM (SELECT a FROM t FOR UPDATE) held")).scalar_one() == 1


def test_no_new_connection_is_needed_to_free_the_locks_of_a_mute_one(relayed: Engine, postgres_relay: TcpRelay) -> None:
    """A disconnection empties the pool, unless the pool has been emptied since that connection was made."""
    own_process = text("SELECT pg_backend_pid()")
    with pytest.raises(DBAPIError), relayed.begin() as connection:
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.execute(text("UPDATE t SET b = 'lost'"))
        with pytest.raises(DBAPIError), relayed.begin() as given_up_first:
            postgres_relay.mute()
            given_up_first.execute(own_process)
        with relayed.begin() as another:
            kept = another.execute(own_process).scalar_one()
        connection.execute(own_process)
    with relayed.begin() as another:
        another.execute(text("UPDATE t SET b = 'two'"))
        assert another.execute(own_process).scalar_one() == kept


@pytest.mark.parametrize("name", ["nocturne", "z\u00e4hler", "n" * 70])
def test_a_session_is_known_by_the_name_that_the_server_keeps(
    relayed_url: str, postgres_relay: TcpRelay, name: str
) -> None:
    """It cuts long names, and escapes what is not ASCII."""
    engine = open_database(f"{relayed_url}?application_name={quote(name)}", deadlines=SHORT)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t AS SELECT 1 AS a"))
    lose_a_transaction(engine, postgres_relay)
    with engine.begin() as connection:
        connection.execute(text("UPDATE t SET a = 3"))
    engine.dispose()


@pytest.fixture
def login(postgres_url: str) -> Iterator[str]:
    """The name of a login whose transactions run as another role, which owns the table."""
    name = f"login_{uuid4().hex[:8]}"
    engine = open_database(postgres_url)
    with engine.begin() as connection:
        for statement in (
            f"CREATE ROLE {name} LOGIN", f"CREATE ROLE {name}_owner", f"GRANT {name}_owner TO {name}",
            "CREATE TABLE t AS SELECT 1 AS a", f"ALTER TABLE t OWNER TO {name}_owner",
            f"ALTER ROLE {name} SET role = {name}_owner",
        ):  # fmt: skip
            connection.exec_driver_sql(statement)
    yield name
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP TABLE t; DROP ROLE {name}; DROP ROLE {name}_owner")
    engine.dispose()


@pytest.mark.parametrize("may_end", [True, False])
def test_a_login_that_takes_a_role_ends_its_sessions_where_it_may(
    login: str, relayed_url: str, postgres_url: str, postgres_relay: TcpRelay, may_end: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The fault is told where it may not: it is none of the transaction that comes next."""
    if not may_end:
        admin = open_database(postgres_url)
        with admin.begin() as connection:
            connection.exec_driver_sql("REVOKE SELECT ON pg_stat_activity FROM PUBLIC")
        admin.dispose()
    url = make_url(relayed_url).set(username=login, password=None).render_as_string(hide_password=False)
    engine = open_database(url, deadlines=SHORT)
    assert is_outage(lose_a_transaction(engine, postgres_relay))
    with engine.begin() as connection:
        connection.execute(text("SELECT a FROM t"))
        if may_end:
            connection.execute(text("UPDATE t SET a = 3"))
    assert ("cannot be ended" in caplog.text) == (not may_end)
    engine.dispose()


def test_a_mute_commit_is_given_up(relayed: Engine, postgres_relay: TcpRelay) -> None:
    with pytest.raises(DBAPIError) as raised, relayed.begin() as connection:
        connection.execute(text("UPDATE t SET b = 'two'"))
        postgres_relay.mute()
    assert is_outage(raised.value)


def test_a_connection_that_went_mute_in_the_pool_is_replaced(relayed: Engine, postgres_relay: TcpRelay) -> None:
    assert postgres_relay.mute() > 0
    with relayed.begin() as connection:
        assert connection.execute(text("SELECT b FROM t")).scalar_one() == "one"


def test_a_mute_server_is_not_waited_for_while_connecting(relayed_url: str, postgres_relay: TcpRelay) -> None:
    postgres_relay.mute(new_ones_too=True)
    engine = open_database(relayed_url, deadlines=SHORT)
    started = time.monotonic()
    assert is_outage(raised_by(engine, "SELECT 1"))
    assert time.monotonic() - started < 60
    engine.dispose()


def test_a_lock_and_a_slow_statement_end_on_a_server_that_answers(relayed: Engine) -> None:
    """Its connection goes on, and another attempt may have longer."""
    with relayed.begin() as holding:
        holding.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        holding.execute(text("UPDATE t SET b = 'held'"))
        error = raised_by(limited(relayed, Call.CLAIM), "UPDATE t SET b = 'waits'")
        assert is_timeout(error) and is_outage(error) and not error.connection_invalidated
    slow = text("SELECT pg_sleep(2.5)")
    error = raised_by(limited(relayed, Call.QUERY), "SELECT pg_sleep(2.5)")
    assert is_timeout(error) and not error.connection_invalidated
    with stretched(32), limited(relayed, Call.QUERY).begin() as connection:
        connection.execute(slow)

    def write() -> None:
        with limited(relayed, Call.QUERY).begin() as connection:
            connection.execute(slow)

    DatabaseOutages().retry_until_available(write)


def test_a_migration_has_all_the_time_it_wants(relayed: Engine) -> None:
    with limited(relayed, Call.MIGRATION).begin() as connection:
        connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": SHORT.query + CLIENT_MARGIN_SECONDS + 0.5})
        limits = [connection.exec_driver_sql(f"SHOW {name}_timeout").scalar_one() for name in ("statement", "lock")]
    assert limits == ["0", "0"]


def test_a_read_only_server_is_an_outage_and_its_connection_is_left(relayed: Engine) -> None:
    """A primary that became a standby goes on answering; a new connection may reach the new primary."""
    with limited(relayed, Call.QUERY).connect() as connection, pytest.raises(DBAPIError) as raised:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        connection.execute(text("UPDATE t SET b = 'two'"))
    assert is_outage(raised.value) and raised.value.connection_invalidated


def test_a_statement_that_the_driver_cannot_send_is_no_outage(relayed: Engine) -> None:
    with pytest.raises(DBAPIError) as raised, relayed.begin() as connection:
        connection.exec_driver_sql("SELECT %s", (object(),))
    assert not is_outage(raised.value)


@pytest.mark.parametrize("read_only", [False, True])
def test_nothing_of_a_session_is_used(pooled_url: str, read_only: bool) -> None:
    """Through what PgBouncer in transaction mode refuses: start-up options, settings, prepared statements."""
    writer = open_database(pooled_url)
    upgrade(writer)
    writer.dispose()
    engine = open_database(pooled_url, read_only=read_only)
    with engine.begin() as connection:
        for _ in range(8):  # psycopg prepares a statement the fifth time
            connection.execute(text("SELECT count(*) FROM jobs"))
        limits = [connection.exec_driver_sql(f"SHOW {name}_timeout").scalar_one() for name in ("statement", "lock")]
    assert limits == ["10min", "10min"]
    if read_only:
        with answer(engine, "SELECT count(*) AS jobs FROM jobs") as found:
            assert found.columns == ["jobs"] and list(found.rows) == [(0,)]
    engine.dispose()


def test_a_deadline_beyond_the_server_s_numbers_is_the_longest_that_it_takes(postgres_url: str) -> None:
    """A person who means "never" gives a large number."""
    never = Deadlines(*[1e12] * len(fields(Deadlines)))
    engine = open_database(postgres_url, deadlines=never)
    with stretched(32), limited(engine, Call.COMMIT).begin() as connection:
        limits = [connection.exec_driver_sql(f"SHOW {name}_timeout").scalar_one() for name in ("statement", "lock")]
    assert limits == [f"{2**31 - 1}ms"] * 2
    engine.dispose()


class EmptiedByAnother(deque[tuple[int, str]]):
    """Sessions to end, the last of which another thread takes at the same time."""

    def __bool__(self) -> bool:
        return True


def test_connections_made_at_once_share_the_sessions_to_end(postgres_url: str) -> None:
    plain = make_url(postgres_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with TimedConnection.connect(plain, autocommit=True) as connection:
        _end_abandoned(EmptiedByAnother([(0, "gone")]), connection)


def test_a_session_stays_to_be_ended_until_a_server_answers(postgres_url: str) -> None:
    plain = make_url(postgres_url).set(drivername="postgresql").render_as_string(hide_password=False)
    abandoned = deque([(0, "gone")])
    with TimedConnection.connect(plain, autocommit=True) as connection:
        connection.pgconn.finish()
        with pytest.raises(OperationalError):
            _end_abandoned(abandoned, connection)
    assert list(abandoned) == [(0, "gone")]
