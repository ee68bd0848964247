"""`worker start` with an engine that answers at once and short pauses between its attempts to reach Redis."""

from __future__ import annotations

from unittest.mock import patch

from benchmarks.support.null_worker import null_engine_main
from worker.cli import main

if __name__ == "__main__":
    with (
        patch("worker.engine_process.supervisor.engine_main", null_engine_main),
        patch("worker.consumer.RETRY_SECONDS", (0.0, 0.05)),
    ):
        main()
