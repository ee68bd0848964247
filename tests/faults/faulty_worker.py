"""`worker start` with a fault on purpose: the variable FAULT is `poison`, `clock` or `storage`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any, NoReturn
from unittest.mock import patch

from tests.faults.poison import poisoned_engine_main
from worker.cli import main


def fast_time() -> float:
    """An hour ahead of everybody else's."""
    return datetime.now(UTC).timestamp() + 3600


def broken_commit(*arguments: Any) -> NoReturn:  # noqa: ARG001
    raise TypeError("a fault of the worker's own")


REPLACEMENTS: dict[str, dict[str, object]] = {
    "poison": {"worker.engine_process.supervisor.engine_main": poisoned_engine_main},
    "storage": {"worker.storage.job_store.JobStore.commit": broken_commit},
    "clock": {"time.time": fast_time, "kombu.transport.redis.time": fast_time},
}


if __name__ == "__main__":
    with ExitStack() as stack:
        for target, replacement in REPLACEMENTS[os.environ["FAULT"]].items():
            stack.enter_context(patch(target, replacement))
        main()
