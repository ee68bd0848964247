"""The entry point of the engine process. Imports torch only when called: the parent needs none."""

from __future__ import annotations

import gc
import os
import signal
from multiprocessing import parent_process
from multiprocessing.connection import Connection

from models.child_process import end_with_parent
from models.engine_options import EngineOptions
from models.settings import Settings
from worker.engine.cpu.openmp import let_waiting_threads_sleep
from worker.engine_process.cache_folders import name_cache_folders
from worker.monitoring.json_log import set_up_log
from worker.signals import ignore_terminal


def engine_main(connection: Connection, options: EngineOptions) -> None:
    """The new process's main function."""
    ignore_terminal()  # its parent's to handle
    parent = parent_process()
    if parent is not None and (follow_parent := end_with_parent(signal.SIGKILL, parent.pid)) is not None:
        follow_parent()
    let_waiting_threads_sleep()
    settings = Settings()
    set_up_log(settings, os.getppid())
    name_cache_folders()
    gc.disable()  # the thousands of modules stay: a tenth of their import went into looking for garbage among them
    from worker.engine_process.loop import run_engine

    gc.freeze()
    gc.enable()
    run_engine(connection, options, settings.engine_timeout)
