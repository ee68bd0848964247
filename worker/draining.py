"""`worker drain`: asks a worker, through its row in the database, to end when its jobs have ended.

It does not go through Redis: whoever reaches that may not change a worker.
"""

from __future__ import annotations

import time

from sqlalchemy import Engine, select, update
from sqlalchemy.exc import DBAPIError

from migrations.schema_state import check_schema
from models.database.clock import database_timestamp
from models.database.connection import check_connection, open_database
from models.database.faults import unavailable
from models.database.live_workers import is_alive
from models.schema.worker import Worker

POLL_SECONDS = 0.2


class NoSuchWorker(Exception):
    """No living worker has the name; the text lists those that there are."""


def drain(database_url: str, name: str, *, is_awaited: bool) -> str:
    """Asks the worker to drain; returns a line about it. Raises `DatabaseUnavailable` or `NoSuchWorker`."""
    database = open_database(database_url)
    try:
        check_connection(database)
        check_schema(database)
        return _drain(database, name, is_awaited=is_awaited)
    except DBAPIError as error:
        raise unavailable(error) from error
    finally:
        database.dispose()


def _drain(database: Engine, name: str, *, is_awaited: bool) -> str:
    with database.begin() as connection:
        asked = update(Worker).where(Worker.name == name, is_alive()).values(draining_since=database_timestamp())
        if connection.execute(asked.returning(Worker.name)).first() is None:
            alive = connection.execute(select(Worker.name).where(is_alive()).order_by(Worker.name)).scalars().all()
            raise NoSuchWorker(f"no worker named {name} is running; {_listed(list(alive))}")
    if not is_awaited:
        return f"{name} takes no more jobs and ends when those that it has have ended; its row says when: stopped_at"
    while _is_alive(database, name):
        time.sleep(POLL_SECONDS)
    return f"{name} has ended"


def _is_alive(database: Engine, name: str) -> bool:
    with database.begin() as connection:
        return connection.execute(select(Worker.name).where(Worker.name == name, is_alive())).first() is not None


def _listed(names: list[str]) -> str:
    return f"those that run: {', '.join(names)}" if names else "none runs"
