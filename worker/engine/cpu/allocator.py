"""The process's allocator, made to keep freed memory."""

from __future__ import annotations

import ctypes
import sys

#: glibc's names for what `mallopt` sets (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

#: Larger blocks are returned all the same: among small ones they would leave holes that nothing fits into.
KEPT_BLOCK_BYTES = 2**25
KEPT_BYTES = 2**30


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of returning it: a step's large temporaries come again at the next.

    Handing them back and getting them anew costs a page fault for every 4 KiB, in every step.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
