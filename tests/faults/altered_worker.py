"""`worker start` with something wrong on purpose: the variable ALTERED is `poison` or `clock`."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, tzinfo
from typing import Self

import worker.reaper
import worker.store
import worker.supervisor
from tests.faults.poison import poisoned_engine_main
from worker.cli import main


class FastClock(datetime):
    """An hour ahead of everybody else's."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + timedelta(hours=1)


if __name__ == "__main__":
    if os.environ["ALTERED"] == "poison":
        worker.supervisor.engine_main = poisoned_engine_main
    else:
        worker.store.datetime = worker.reaper.datetime = FastClock  # type: ignore[misc]
    main()
