"""The log as JSON, one object per line, with the ids that a record is about.

A record names them by `extra=about(claims)`; those of a task's thread are noted once, by `note_task`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Protocol

from models.settings import Settings

#: Attributes of a record that become fields; Celery's own records have the last two.
FIELDS = ("run_id", "job_id", "run_ids", "job_ids", "task_id", "hostname")

#: More ids than this are counted instead: a line is for people and indexes, not for lists.
MAX_IDS = 256

_task_fields: ContextVar[dict[str, Any]] = ContextVar("task_fields", default={})  # noqa: B039 - never changed in place


class OfJob(Protocol):
    """A claim, as far as the log is concerned."""

    @property
    def job_id(self) -> int: ...

    @property
    def run_id(self) -> str: ...


def about(claims: Iterable[OfJob]) -> dict[str, Any]:
    """The fields of a record about these jobs; one job has its ids under their singular names."""
    listed = list(claims)
    if len(listed) == 1:
        return {"run_id": listed[0].run_id, "job_id": listed[0].job_id}
    run_ids = sorted({claim.run_id for claim in listed})
    return {"run_ids": run_ids[:MAX_IDS], "job_ids": sorted(claim.job_id for claim in listed)[:MAX_IDS]}


def note_task(run_id: str) -> None:
    """Records of this thread are about the run from now on, until the thread begins with another task."""
    _task_fields.set({"run_id": run_id})


class JsonFormatter(logging.Formatter):
    """A record as one line: time, level, logger, message, worker, the ids, and the exception."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "worker": self._worker,
            "process": record.process,
            **_task_fields.get(),
            **{name: value for name in FIELDS if (value := getattr(record, name, None)) not in (None, "???")},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # in ASCII, whatever the locale


def say(settings: Settings, message: str, level: int = logging.INFO) -> None:
    """Tells the terminal something in the form of the log, before or beside a logger."""
    write_line(line_of(settings, message, level) if settings.log_format == "json" else f"worker: {message}")


def write_line(text: str) -> None:
    """Writes to the terminal."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def line_of(settings: Settings, message: str, level: int = logging.INFO) -> str:
    """The line of a message that comes from no logger."""
    record = logging.LogRecord(__name__, level, "", 0, "%s", (message,), None)
    return JsonFormatter(settings.name_of_worker(os.getpid())).format(record)


def set_up_log(settings: Settings, worker_pid: int) -> None:
    """Sets the form of the log in a process that has no log yet; in a worker, until Celery makes its own."""
    logging.raiseExceptions = False  # a log that nobody reads any more slows no work down with tracebacks
    if settings.log_format == "json":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonFormatter(settings.name_of_worker(worker_pid)))
        logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
        logging.captureWarnings(True)
