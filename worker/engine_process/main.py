"""The engine process's way in. Loads torch only when it is called, so that who starts the process needs none."""

from __future__ import annotations

from multiprocessing.connection import Connection

from worker.engine_process.protocol import EngineOptions


def engine_main(connection: Connection, options: EngineOptions) -> None:
    """What the new process runs."""
    from worker.engine_process.loop import run_engine

    run_engine(connection, options)
