"""Relays in front of the servers of the test session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DBAPIError

from tests.nights.connections.pooler_rules import PoolerRules
from tests.nights.connections.tcp_relay import TcpRelay


def postgres_socket(url: str) -> Path:
    """The socket of a server that is given by its folder."""
    return Path(str(make_url(url).query["host"])) / ".s.PGSQL.5432"


def through(relay: TcpRelay, url: str) -> str:
    """The URL of the same database through the relay."""
    relayed = make_url(url).difference_update_query(["host"]).set(host="127.0.0.1", port=relay.port)
    return relayed.render_as_string(hide_password=False)


def lose_a_transaction(engine: Engine, relay: TcpRelay) -> DBAPIError:
    """The error of a transaction whose connection goes mute: it has locked the rows of `t`, and its server keeps it."""
    with pytest.raises(DBAPIError) as raised, engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.execute(text("UPDATE t SET a = a"))
        relay.mute()
        connection.execute(text("SELECT 1"))
    return raised.value


@pytest.fixture
def postgres_relay(postgres_url: str) -> Iterator[TcpRelay]:
    with TcpRelay(postgres_socket(postgres_url)) as relay:
        yield relay


@pytest.fixture
def relayed_url(postgres_relay: TcpRelay, postgres_url: str) -> str:
    """The URL of an empty database through a relay that can go mute."""
    return through(postgres_relay, postgres_url)


@pytest.fixture
def pooled_url(postgres_url: str) -> Iterator[str]:
    """The URL of an empty database through a relay that refuses what PgBouncer refuses."""
    with TcpRelay(postgres_socket(postgres_url), PoolerRules) as relay:
        yield through(relay, postgres_url)
