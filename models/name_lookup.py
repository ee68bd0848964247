"""Bounded lookups of host names: the system's own have no limit, and no signal ends one, not even Ctrl-C.

Drivers of databases and of Redis look names up through `socket`, so the bound holds for all of them.
"""

from __future__ import annotations

import socket
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

LOOKUP_SECONDS = 10.0

_look_up = socket.getaddrinfo


def bound_name_lookups() -> None:
    """Bounds the lookups of this process."""
    socket.getaddrinfo = look_up


def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
    """The answer of `socket.getaddrinfo`, in a thread that is left behind where it has none. Raises `OSError`."""
    answers: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_answer, args=(answers, host, arguments, options), name="name lookup", daemon=True).start()
    try:
        answer = answers.get(timeout=LOOKUP_SECONDS)
    except Empty:
        reason = f"the name {host!r} was not looked up within {LOOKUP_SECONDS:g} s"
        raise socket.gaierror(socket.EAI_AGAIN, reason) from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _answer(answers: SimpleQueue[Any], host: Any, arguments: Any, options: Any) -> None:
    try:
        answers.put(_look_up(host, *arguments, **options))
    except BaseException as error:
        answers.put(error)
