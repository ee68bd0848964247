"""torch's device guard for CUDA: without one, in a CPU build, indexing a CUDA tensor says "not linked".

The guard of a CUDA build asks a driver, which may be absent. No compiler is needed. Guards without effect exist for
other devices, and the table that torch looks them up in is exported: CUDA gets the CPU's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

#: `c10::impl::device_guard_impl_registry`, an array of pointers by `c10::DeviceType`.
SYMBOL = "_ZN3c104impl26device_guard_impl_registryE"
CPU, CUDA = 0, 1


@contextmanager
def cuda_guard() -> Iterator[None]:
    """A guard for CUDA as long as the context lasts."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    registry = (ctypes.c_void_p * 2).in_dll(library, SYMBOL)
    before = registry[CUDA]
    registry[CUDA] = registry[CPU]
    try:
        yield
    finally:
        registry[CUDA] = before
