"""`producer` and `worker` where the lookup of a host's name hangs in the C library, out of reach of every signal."""

from __future__ import annotations

import ctypes
import os
import sys
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

from models import name_lookup
from models.engine_options import EngineOptions
from models.entry_point import run_command


def hang(*arguments: Any, **options: Any) -> Any:  # noqa: ARG001
    """Locks a mutex twice: the second call never returns, and takes up again after a signal."""
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    for _ in range(2):
        library.pthread_mutex_lock(mutex)


def null_engine_main(connection: Connection, options: EngineOptions) -> None:
    """An engine that has nothing to do."""
    from benchmarks.support import null_worker  # it takes long, and only a worker needs it

    os.environ["NULL_TOKENS"] = "1"
    null_worker.null_engine_main(connection, options)


if __name__ == "__main__":
    command = sys.argv.pop(1)
    name_lookup.LOOKUP_SECONDS = float(sys.argv.pop(1))
    with patch("models.name_lookup._look_up", hang):
        if command == "worker":
            with patch("worker.engine_process.supervisor.engine_main", null_engine_main):
                run_command("worker.cli")
        run_command("producer.cli")
