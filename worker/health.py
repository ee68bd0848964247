"""`worker health`: whether a worker of this machine lives, by the time of the last heartbeat in its row.

For the health checks of containers: the worker that claims and commits writes the row, so a process that hangs is not
healthy, nor is one without its database.
"""

from __future__ import annotations

import platform

from sqlalchemy import Engine, select
from sqlalchemy.exc import DBAPIError

from migrations.schema_state import check_schema
from models.database.clock import database_timestamp
from models.database.connection import check_connection, open_database
from models.database.faults import unavailable
from models.database.live_workers import is_of_group
from models.schema.worker import Worker
from models.settings import Settings


class Unhealthy(Exception):
    """No worker has given a sign of life lately; the text says which was looked for."""


def check_health(settings: Settings, name: str | None, seconds: float) -> str:
    """The name of a living worker: the one named or a member of its group, else any of this host.

    Raises `Unhealthy` and `DatabaseUnavailable`.
    """
    database = open_database(settings.database_url)
    try:
        check_connection(database)
        found = _living(database, name, seconds)
    except DBAPIError as error:
        check_schema(database)  # only here: a worker is healthy too while another version's schema serves it
        raise unavailable(error) from error
    finally:
        database.dispose()
    if not found:
        wanted = f"worker {name}" if name is not None else f"worker of {platform.node()}"
        raise Unhealthy(f"no {wanted} has given a sign of life within {seconds:g} s")
    return found[0]


def _living(database: Engine, name: str | None, seconds: float) -> list[str]:
    """The names of the workers that were seen by the database's clock and have not signed off."""
    which = Worker.host == platform.node()
    if name is not None:
        which = is_of_group(Worker.name, name)
    is_seen = Worker.seen_at > database_timestamp(seconds)
    statement = select(Worker.name).where(which, Worker.stopped_at.is_(None), is_seen).order_by(Worker.name)
    with database.begin() as connection:
        return list(connection.scalars(statement))
