"""Standard output and error of which the reader has gone, as after the end of a terminal or of a `tee`."""

from __future__ import annotations

import os
import select

GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL


def leave_closed_streams() -> None:
    """Lets what nobody can read any more go nowhere: Celery writes lines at its start, and would end with an error."""
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(event & GONE for _, event in poll.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            if nowhere != descriptor:
                os.close(nowhere)
