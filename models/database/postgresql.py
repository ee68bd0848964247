"""Connections to PostgreSQL that keep nothing in the session: each transaction begins with its own settings.

So they work through PgBouncer and other poolers in transaction mode. Every wait for the server has a deadline: a peer
that has gone mute is given up, and a server that may still run its transaction is told to end it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import count
from time import monotonic
from typing import Any
from uuid import uuid4

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext

from models.database.deadlines import CLIENT_MARGIN_SECONDS, Call, Deadlines

#: Seconds after which the kernels of both sides look for a peer that is gone: idle, between probes, number of probes.
KEEPALIVES = {"idle": 30, "interval": 10, "count": 3}

#: The server takes no writes: a standby, or a primary that has become one. A new connection may reach the primary.
READ_ONLY_SQLSTATE = "25006"

#: The largest number of an option of libpq and of a setting of the server.
MAX_INTEGER = 2**31 - 1

_numbers = count(1)
_process = uuid4().hex[:8]

#: By its name alone where the name is ours: a pooler tells its clients other numbers than the server's.
_END_SESSION = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE (pid = %(pid)s OR starts_with(application_name, %(ours)s)) AND application_name = %(name)s
        AND pid <> pg_backend_pid()
"""

logger = logging.getLogger(__name__)


class NoAnswer(psycopg.OperationalError):
    """The server was silent for longer than the deadline; the connection is closed."""


class WrongEncoding(psycopg.errors.InvalidCatalogName):
    """The database keeps texts in another encoding than UTF-8."""


class TimedConnection(psycopg.Connection[Any]):
    """A connection whose every wait for the server ends after `answer_seconds` of silence."""

    _pool = None  # psycopg's mark of a connection that its pool, here SQLAlchemy's, may leave open at its end
    answer_seconds: float | None = None
    copy_seconds: float | None = None
    begin_suffix = ""
    begin_statement: str | None = None
    abandoned: deque[tuple[int, str]] | None = None

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        if self.answer_seconds is not None:
            gen = self._until_silent(gen, self.answer_seconds)
        return super().wait(gen, *arguments, **options)

    @contextmanager
    def copying(self) -> Iterator[None]:
        """The block is a COPY: each part of it has its own deadline."""
        before, self.answer_seconds = self.answer_seconds, self.copy_seconds
        try:
            yield
        finally:
            self.answer_seconds = before

    def _until_silent(self, gen: Generator[Any, Any, Any], seconds: float) -> Generator[Any, Any, Any]:
        """Passes the driver's waits on; psycopg wakes up several times a second without anything to read."""
        try:
            state, last = next(gen), monotonic()
            while True:
                ready = yield state
                if ready:
                    last = monotonic()
                elif monotonic() - last >= seconds:
                    self._abandon(seconds)
                state = gen.send(ready)
        except StopIteration as end:
            return end.value

    def _abandon(self, seconds: float) -> None:
        if self.abandoned is not None:
            name = self.info.parameter_status("application_name")  # as the server has cut or escaped it
            self.abandoned.append((self.pgconn.backend_pid, name or ""))
        self.pgconn.finish()
        raise NoAnswer(f"the server did not answer for {seconds:g} s")


def copying(connection: object) -> AbstractContextManager[None]:
    """A block with the deadline of a COPY; a driver's connection of another kind has none."""
    return connection.copying() if isinstance(connection, TimedConnection) else nullcontext()


def open_postgresql(url: URL, deadlines: Deadlines, *, read_only: bool) -> Engine:
    """An engine for the URL; with `read_only` every transaction refuses to write."""
    arguments: dict[str, Any] = {
        "connect_timeout": max(2, round(min(deadlines.connect, MAX_INTEGER))),
        "autocommit": True,  # transactions are begun by the "begin" event alone
        "prepare_threshold": None,  # a pooler may give the next transaction another session, without the statement
    }
    defaults = {"keepalives": 1, **{f"keepalives_{name}": seconds for name, seconds in KEEPALIVES.items()}}
    arguments |= {name: value for name, value in defaults.items() if name not in url.query}
    engine = create_engine(
        url,
        pool_pre_ping=True,
        # For threads that wait for the connections of others, which have deadlines of their own.
        pool_timeout=min(deadlines.command, MAX_INTEGER),
        connect_args=arguments,
        use_native_hstore=False,
    )
    abandoned: deque[tuple[int, str]] = deque()
    event.listen(engine, "do_connect", partial(_connect, deadlines, abandoned))
    event.listen(engine, "checkout", partial(_end_abandoned, abandoned))  # a transaction may wait for their locks
    event.listen(engine, "begin", partial(_choose_limits, deadlines, read_only))
    engine.dialect.do_begin = _begin  # type: ignore[method-assign,assignment]
    event.listen(engine, "checkin", partial(_end, deadlines))
    if read_only:
        event.listen(engine, "connect", _drop_superuser)
    else:
        event.listen(engine, "handle_error", _look_for_the_primary)
    return engine


def _connect(
    deadlines: Deadlines,
    abandoned: deque[tuple[int, str]],
    dialect: object,
    record: object,
    positional: tuple[Any, ...],
    named: dict[str, Any],
) -> TimedConnection:
    named.setdefault("application_name", f"nocturne {_process} {next(_numbers)}")
    named["client_encoding"] = "UTF8"  # the environment may name another one
    connection = TimedConnection.connect(*positional, **named)
    connection.answer_seconds = deadlines.connect
    connection.copy_seconds = deadlines.copy + CLIENT_MARGIN_SECONDS
    connection.abandoned = abandoned
    try:
        _check_encoding(connection)
    except psycopg.Error:
        connection.close()  # the pool does not: it has never had it
        raise
    return connection


def _check_encoding(connection: TimedConnection) -> None:
    """Raises `WrongEncoding` where not every text can be stored, or none can be read back."""
    encoding = connection.info.parameter_status("server_encoding") or "UTF8"  # a pooler may not tell
    if encoding != "UTF8":
        raise WrongEncoding(f"its encoding is {encoding}, and answers need one with ENCODING 'UTF8' TEMPLATE template0")


def _end_abandoned(abandoned: deque[tuple[int, str]], connection: TimedConnection, *_record_and_proxy: object) -> None:
    """Ends the sessions that were given up: the server may not know, and keep the locks of their transactions."""
    while (session := _taken(abandoned)) is not None:
        pid, name = session
        try:
            with connection.transaction():
                connection.execute("SET LOCAL ROLE NONE")  # a role that it takes may not end a login's sessions
                connection.execute(_END_SESSION, {"pid": pid, "name": name, "ours": f"nocturne {_process} "})
        except psycopg.OperationalError:
            abandoned.append(session)  # for the next transaction
            raise
        except psycopg.ProgrammingError as error:
            logger.warning(
                "a connection that did not answer may keep its locks on the server: session %s cannot be ended: %s",
                pid,
                error.diag.message_primary,
            )


def _taken(abandoned: deque[tuple[int, str]]) -> tuple[int, str] | None:
    """The session that was given up first; None once other threads have taken the last one."""
    try:
        return abandoned.popleft()
    except IndexError:
        return None


def _choose_limits(deadlines: Deadlines, read_only: bool, connection: Connection) -> None:
    """Leaves the statement that begins the transaction with the driver's connection, which runs it next."""
    options = connection.get_execution_options()
    driver: Any = connection.connection.driver_connection
    if options.get("isolation_level") == "AUTOCOMMIT":
        driver.begin_statement = None
        return
    call = Call(options.get("call", Call.COMMAND))
    seconds = deadlines.of_statement(call)
    limits = {
        "statement_timeout": _milliseconds(seconds),
        "lock_timeout": _milliseconds(deadlines.of_lock(call)),
        "idle_in_transaction_session_timeout": _milliseconds(deadlines.of_idle_transaction(call)),
    }
    if call == Call.COMMIT:  # the server waits without a limit for the rest of a COPY
        limits |= {f"tcp_keepalives_{name}": value for name, value in KEEPALIVES.items()}
    settings = "".join(f"; SET LOCAL {name} = {value}" for name, value in limits.items())
    driver.answer_seconds = None if seconds is None else seconds + CLIENT_MARGIN_SECONDS
    driver.begin_statement = f"BEGIN{' READ ONLY' if read_only else ''}{settings}{driver.begin_suffix}"


def _begin(connection: Any) -> None:
    """The dialect's `do_begin`: one round trip for the transaction and its settings."""
    driver: TimedConnection = connection.driver_connection
    if driver.begin_statement is not None:
        driver.execute(driver.begin_statement, prepare=False)


def _milliseconds(seconds: float | None) -> int:
    """A limit as PostgreSQL takes it: a 32-bit number, 0 for none."""
    return 0 if seconds is None else max(1, round(min(1000 * seconds, MAX_INTEGER)))


def _end(deadlines: Deadlines, connection: TimedConnection | None, record: object) -> None:
    if connection is not None:
        connection.answer_seconds = deadlines.connect  # for the ping of the next use


def _look_for_the_primary(context: ExceptionContext) -> None:
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY_SQLSTATE:
        context.is_disconnect = True


def _drop_superuser(connection: TimedConnection, record: object) -> None:
    """Drops a superuser's rights in every transaction: they could run programs and end sessions."""
    row = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
    if row is not None and row[0]:
        connection.begin_suffix = "; SET LOCAL ROLE pg_read_all_data"
