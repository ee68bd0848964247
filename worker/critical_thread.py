"""Threads without which a worker does harm: an unexpected error in one ends the process."""

from __future__ import annotations

import logging
import os
from threading import Thread

logger = logging.getLogger(__name__)


class CriticalThread(Thread):
    """Ends the whole process on an unexpected error, as a `kill -9` would.

    The leases run out and the jobs go to other workers. A worker without its committer would renew leases forever.
    """

    def run(self) -> None:
        try:
            super().run()
        except BaseException:
            logger.critical("a fault in the worker's %s, ending at once", self.name, exc_info=True)
            logging.shutdown()
            os._exit(1)
