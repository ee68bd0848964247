"""The entry point of the engine process. Imports torch only when called: the parent needs none."""

from __future__ import annotations

from multiprocessing.connection import Connection

from models.engine_options import EngineOptions
from worker.engine.cpu.openmp import let_waiting_threads_sleep


def engine_main(connection: Connection, options: EngineOptions) -> None:
    """The new process's main function."""
    let_waiting_threads_sleep()
    from worker.engine_process.loop import run_engine

    run_engine(connection, options)
