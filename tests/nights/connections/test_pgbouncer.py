"""The system's PgBouncer between everything of ours and PostgreSQL, in both its modes. `make faults` installs it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from migrations.upgrade import upgrade
from models.database.connection import open_database
from models.database.deadlines import Deadlines
from models.database.faults import is_outage
from tests.conftest import TOY_MODEL, Producer
from tests.nights.connections.conftest import lose_a_transaction, postgres_socket, through
from tests.nights.connections.tcp_relay import TcpRelay
from tests.support.processes import WorkerProcess, free_port, wait_until

pytestmark = pytest.mark.long

#: Modes and sessions: in transaction mode fewer than the two workers and the producer have connections, so that
#: transactions change sessions; in session mode enough for all of them, since each keeps one.
MODES = [("transaction", 3), ("session", 60)]

CONFIGURATION = """
[databases]
* = host={folder} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 200
"""


@pytest.fixture(params=MODES, ids=lambda mode: mode[0])
def pooled_url(postgres_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database through PgBouncer."""
    mode, size = request.param
    user_name = make_url(postgres_url).username or "postgres"
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None, "install pgbouncer, as `make faults` does"
    url, port = make_url(postgres_url), free_port()
    file = tmp_path / "pgbouncer.ini"
    folder = postgres_socket(postgres_url).parent
    file.write_text(CONFIGURATION.format(folder=folder, user=user_name, port=port, mode=mode, size=size))
    user = "pgserver" if os.geteuid() == 0 else None  # neither runs as root: the user whom the server runs as
    command = [program, *(["--user", user] if user else []), str(file)]
    with (tmp_path / "pgbouncer.log").open("w") as log, subprocess.Popen(command, stderr=log, stdout=log) as pooler:
        pooled = url.difference_update_query(["host"]).set(host="127.0.0.1", port=port)
        try:
            wait_until(lambda: answers(port))
            yield pooled.render_as_string(hide_password=False)
        finally:
            pooler.terminate()


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("read_only", [False, True])
def test_statements_that_repeat_need_nothing_of_a_session(pooled_url: str, read_only: bool) -> None:
    writer = open_database(pooled_url)
    upgrade(writer)
    writer.dispose()
    engine = open_database(pooled_url, read_only=read_only)
    for _ in range(8):  # psycopg prepares a statement the fifth time
        with engine.begin() as first, engine.begin() as second:
            assert [each.execute(text("SELECT count(*) FROM jobs")).scalar_one() for each in (first, second)] == [0, 0]
            limits = [second.exec_driver_sql(f"SHOW {name}_timeout").scalar_one() for name in ("statement", "lock")]
            assert limits == ["10min", "10min"]
    engine.dispose()


def test_two_workers_and_every_command(producer: Producer, pooled_url: str, broker: str, tmp_path: Path) -> None:
    lines = [{"prompt": f"Story {number}", "max_new_tokens": 4, "trace": "tokens"} for number in range(200)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    connection = ["--database", pooled_url, "--broker", broker]
    producer("db", "upgrade", "--database", pooled_url)
    with (
        WorkerProcess("--model", TOY_MODEL, *connection, "--name", "first", cwd=tmp_path),
        WorkerProcess("--model", TOY_MODEL, *connection, "--name", "second", cwd=tmp_path),
    ):
        producer("submit", "prompts.jsonl", "--model", TOY_MODEL, "--name", "pooled", *connection)
        wait_until(lambda: state(producer, pooled_url)["state"] == "finished")
    assert state(producer, pooled_url)["succeeded"] == 200
    lines_back = producer("results", "pooled", "--traces", "--database", pooled_url).stdout.splitlines()
    assert len(lines_back) == 200 and all(json.loads(each)["trace"] for each in lines_back)
    counted = producer(
        "sql", "select count(*) as n from token_traces", "--format", "json", "--as-superuser", "--database", pooled_url
    )
    assert json.loads(counted.stdout)[0]["n"] >= 200
    assert "ok   database" in producer("doctor", *connection, "--model", TOY_MODEL).stdout


def state(producer: Producer, url: str) -> dict[str, object]:
    (found,) = json.loads(producer("status", "--json", "--database", url).stdout)
    return dict(found)


def test_a_pooler_that_goes_is_an_outage(pooled_url: str) -> None:
    unreachable = make_url(pooled_url).set(port=free_port()).render_as_string(hide_password=False)
    engine = open_database(unreachable)
    with pytest.raises(DBAPIError) as raised, engine.connect():
        pass
    assert is_outage(raised.value)


def test_the_locks_of_a_client_that_went_mute_are_freed(pooled_url: str) -> None:
    """The pooler keeps its transaction, and knows the session by a number of its own."""
    port = make_url(pooled_url).port
    assert port is not None
    with TcpRelay(port) as relay:
        engine = open_database(through(relay, pooled_url), deadlines=Deadlines(connect=5.0, command=2.0))
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE t AS SELECT 1 AS a"))
        lose_a_transaction(engine, relay)
        with engine.begin() as connection:
            connection.execute(text("UPDATE t SET a = 3"))
        engine.dispose()
