"""`producer doctor`: examines every part the product needs and says how to fix those that fail."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine

from models.checkpoint.paths.known_paths import path_of
from models.database.connection import server_version
from models.database.faults import DatabaseUnavailable, database_name
from models.redacted import redacted
from models.settings import Settings
from producer.console import print_data
from producer.errors import UsageError
from producer.home import holder_of, home_options
from producer.model_files.generation_defaults import defaults_text, model_defaults
from producer.render import to_json, visible
from producer.results.database import readable_database
from producer.results.queries import PAUSED, dead_letters, live_workers, recent_runs
from producer.results.run_tables import decoded_line, overfull_lines, paused_line, queue_lines, resume_line
from producer.runs.broker import check_broker
from producer.runs.device_check import card_findings
from producer.runs.model_check import check_model, small_files
from producer.runs.valkey import embedded_version

LOW_DISK_BYTES = 2 * 2**30

#: The parts without which `run` and `submit` refuse, with the same exit code.
NEEDED_PARTS = frozenset({"model", "defaults", "redis", "database"})


@dataclass(frozen=True)
class Finding:
    """One part's health, with a message about it and a server's name and version."""

    part: str
    is_ok: bool
    message: str
    version: str | None = None


def show_findings(settings: Settings, *, as_json: bool) -> int:
    """Prints a finding for each part; returns the exit code: 2 where a needed one is bad, 1 where another one is."""
    findings = list(examine(settings))
    if as_json:
        print_data(to_json([vars(finding) for finding in findings]))
    for finding in [] if as_json else findings:
        version = f" ({finding.version})" if finding.version else ""
        print_data(f"{'ok ' if finding.is_ok else 'BAD'}  {finding.part:9} {visible(finding.message)}{version}")
    bad = {finding.part for finding in findings if not finding.is_ok}
    return 2 if bad & NEEDED_PARTS else int(bool(bad))


def examine(settings: Settings) -> Iterator[Finding]:
    """A finding for every part, in the order in which one would fix them."""
    yield Finding("settings", True, _origins(settings))
    model = _try("model", lambda: (check_model(settings.model), None))
    yield model
    if model.is_ok:
        yield _try("path", lambda: (path_of(small_files(settings.model).config), None))
        yield _try("defaults", lambda: (_defaults(settings.model), None))
    yield from (Finding("gpu", is_ok, message) for is_ok, message in card_findings())
    yield _disk(settings.home)
    yield _redis(settings)
    database_ok = yield from _database(settings)
    if database_ok:
        yield from _workers(settings)


def _origins(settings: Settings) -> str:
    """The options, the variables and the file that set something."""
    return "; ".join(f"{name}: {origin}" for name, origin in sorted(settings.origins.items())) or "defaults alone"


def _try(part: str, look: Callable[[], tuple[str, str | None]]) -> Finding:
    """The part is well if `look` returns its message and version."""
    try:
        message, version = look()
    except (UsageError, DatabaseUnavailable) as error:
        return Finding(part, False, str(error))
    return Finding(part, True, message, version)


def _defaults(model: str) -> str:
    """The model's own defaults, with the texts of the tokens that end answers. Raises `UsageError`."""
    files = small_files(model)
    defaults = model_defaults(files)
    names = {token_id: token for token, token_id in files.added_tokens.items()}
    known = [f"{token_id} is {names[token_id]}" for token_id in defaults.eos_token_ids or () if token_id in names]
    return defaults_text(defaults) + (f" ({', '.join(known)})" if known else "")


def _disk(home: Path) -> Finding:
    existing = home.absolute()
    while not os.path.exists(existing):  # unlike the method, it takes a path that is too long for absent
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    message = f"{free / 2**30:.1f} GiB free at {existing}"
    return Finding("disk", free >= LOW_DISK_BYTES, message if free >= LOW_DISK_BYTES else f"{message}; free some space")


def _redis(settings: Settings) -> Finding:
    broker = settings.broker
    if broker is None:
        message = "embedded: `producer run` starts its own; give --broker for a server"
        return _try("redis", lambda: (message, embedded_version()))
    return _try("redis", lambda: (redacted(broker), check_broker(broker)))


def _database(settings: Settings) -> Generator[Finding, None, bool]:
    if settings.database is settings.read_database is None and not os.path.exists(settings.embedded_database):
        message = f"none yet; `producer run` makes {settings.embedded_database}"
        yield Finding("database", True, message, f"SQLite {sqlite3.sqlite_version}")
        return False

    def look() -> tuple[str, str]:
        database = readable_database(settings)
        return database_name(database.url), server_version(database)

    finding = _try("database", look)
    yield finding
    return finding.is_ok


def _workers(settings: Settings) -> Iterator[Finding]:
    database = readable_database(settings)
    workers = live_workers(database)
    for worker in workers:
        speed = f"{worker.tokens_per_second:,.0f} tokens/s"
        end = ", and ends when its jobs have ended" if worker.draining_since is not None else ""
        yield Finding("worker", True, f"{worker.name} on {worker.device} serves {worker.model}, {speed}{end}")
    if not settings.is_embedded:
        for line in queue_lines(database):
            yield Finding("queue", False, line)
    else:
        yield from _embedded_runs(database, settings)
        for line in overfull_lines(database):
            yield Finding("queue", False, line)
    if not workers:
        yield Finding("worker", True, "none is running")
    yield from _dead_letters(database)


def _dead_letters(database: Engine) -> Iterator[Finding]:
    """The messages that workers put aside: a fault of some program, or a stranger's."""
    count, newest = dead_letters(database)
    if newest is not None:
        named = "" if newest.job_id is None else f" for job {newest.job_id}"
        yield Finding(
            "messages",
            datetime.now(UTC) - newest.at > timedelta(days=1),  # an old one is no reason to fail
            f"{count:,} dead letters; the newest, of {newest.at:%Y-%m-%d %H:%M:%S} UTC{named} in {newest.queue}: "
            f"{visible(newest.reason)}; see the table dead_letters, and `producer prune` deletes old ones",
        )


def _embedded_runs(database: Engine, settings: Settings) -> Iterator[Finding]:
    """The runs of a home that are not finished: being decoded, or to be resumed."""
    holder = holder_of(settings.home)
    if holder is not None:
        yield Finding("run", True, decoded_line(holder))
    for run in recent_runs(database):
        if run.state == PAUSED:
            yield Finding("run", True, paused_line(run, settings))
        elif not run.is_finished and (holder is None or holder.run != run.id):
            yield Finding("run", False, resume_line(run, home_options(settings)))
