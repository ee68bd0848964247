"""`worker start` whose SQLite database has a clock that the file CLOCK_FILE moves, by so many seconds."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Pool, event

from tests.nights.stepped_clock import replace_sqlite_clock
from worker.cli import main


def moved_time() -> float:
    return time.time() + float(Path(os.environ["CLOCK_FILE"]).read_text() or 0)


def on_connect(connection: Any, record: Any) -> None:  # noqa: ARG001
    if isinstance(connection, sqlite3.Connection):
        replace_sqlite_clock(connection, moved_time)


if __name__ == "__main__":
    event.listen(Pool, "connect", on_connect)
    main()
