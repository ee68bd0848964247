"""`worker start` with something wrong on purpose: the variable FAULT is `poison`, `clock` or `storage`."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, tzinfo
from typing import Any, NoReturn, Self

import worker.engine_process.supervisor
import worker.storage.job_store
import worker.storage.reaper
from tests.faults.poison import poisoned_engine_main
from worker.cli import main


class FastClock(datetime):
    """An hour ahead of everybody else's."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + timedelta(hours=1)


def broken_commit(*arguments: Any) -> NoReturn:  # noqa: ARG001
    raise TypeError("a fault of the worker's own")


if __name__ == "__main__":
    if os.environ["FAULT"] == "poison":
        worker.engine_process.supervisor.engine_main = poisoned_engine_main
    elif os.environ["FAULT"] == "storage":
        worker.storage.job_store.JobStore.commit = broken_commit  # type: ignore[method-assign]
    else:
        worker.storage.job_store.datetime = worker.storage.reaper.datetime = FastClock  # type: ignore[misc]
    main()
