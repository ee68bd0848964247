"""`producer doctor`: looks at every part the product needs and says what to do about those that fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from migrations.upgrade import SchemaOutOfDate, check_schema
from models.database.connection import DatabaseUnavailable, check_connection, open_database
from models.settings import Settings
from producer.errors import UsageError
from producer.results.queries import live_workers, waiting_by_model
from producer.runs.broker import check_broker, hide_password
from producer.runs.model_check import check_model

LOW_DISK_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """One part: is it well, and what is to be said."""

    part: str
    is_ok: bool
    message: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Every part in the order one would mend them."""
    yield _try("model", lambda: check_model(settings.model))
    yield _disk(settings.home)
    yield _redis(settings)
    database_ok = yield from _database(settings)
    if database_ok:
        yield from _workers(settings)


def _try(part: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(part, True, look())
    except (UsageError, DatabaseUnavailable, SchemaOutOfDate) as error:
        return Finding(part, False, str(error))


def _disk(home: Path) -> Finding:
    existing = home.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    message = f"{free / 2**30:.1f} GiB free at {existing}"
    return Finding("disk", free >= LOW_DISK_BYTES, message if free >= LOW_DISK_BYTES else f"{message}; make room")


def _redis(settings: Settings) -> Finding:
    broker = settings.broker
    if broker is None:
        return Finding("redis", True, "embedded: `producer run` starts its own; give --broker for a server")

    def look() -> str:
        check_broker(broker)
        return hide_password(broker)

    return _try("redis", look)


def _database(settings: Settings) -> Generator[Finding, None, bool]:
    if settings.database is None and not (settings.home / "nocturne.db").exists():
        yield Finding("database", True, f"none yet; `producer run` makes {settings.home / 'nocturne.db'}")
        return False

    def look() -> str:
        database = open_database(settings.database_url)
        check_connection(database)
        check_schema(database)
        return database.url.render_as_string()

    finding = _try("database", look)
    yield finding
    return finding.is_ok


def _workers(settings: Settings) -> Iterator[Finding]:
    database = open_database(settings.database_url)
    workers = live_workers(database)
    for worker in workers:
        speed = f"{worker.tokens_per_second:,.0f} tokens/s"
        yield Finding("worker", True, f"{worker.name} on {worker.device} serves {worker.model}, {speed}")
    served = {worker.model for worker in workers}
    for model, count in waiting_by_model(database).items():
        if model not in served:
            fix = f"no worker serves it; start one with: worker start --model {model}"
            yield Finding("queue", False, f"{count:,} jobs wait for {model}: {fix}")
    if not workers:
        yield Finding("worker", True, "none is running")
