"""Root without its rights over other people's files, so that a test of file modes means something as root too."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

VERSION_3 = 0x20080522


@contextmanager
def without_capabilities() -> Iterator[None]:
    """Takes this thread's effective capabilities away for the time of the block; nothing to do for another user."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    kept = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
    assert libc.capget(header, kept) == 0, os.strerror(ctypes.get_errno())
    lowered = (ctypes.c_uint32 * 6)(0, kept[1], kept[2], 0, kept[4], kept[5])
    assert libc.capset(header, lowered) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        assert libc.capset(header, kept) == 0, os.strerror(ctypes.get_errno())
