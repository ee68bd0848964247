"""A thread that the worker cannot do without."""

from __future__ import annotations

import logging
import os
from threading import Thread

logger = logging.getLogger(__name__)


class CriticalThread(Thread):
    """An error that nobody expected in it ends the whole process, as a `kill -9` would.

    Its leases run out and its jobs go to others. Without its committer, say, a worker would renew leases for ever.
    """

    def run(self) -> None:
        try:
            super().run()
        except BaseException:
            logger.critical("a fault in the worker's %s, ending at once", self.name, exc_info=True)
            logging.shutdown()
            os._exit(1)
