"""The C kernels for their tests, and the mark of tests that need a compiler."""

from __future__ import annotations

import ctypes
import os
import shutil

import pytest
import torch

from worker.engine.cpu.kernels import CpuKernels
from worker.engine.cpu.library import cpu_library

HAS_COMPILER = shutil.which(os.environ.get("CC", "cc")) is not None

NEEDS_COMPILER = pytest.mark.skipif(not HAS_COMPILER, reason="this machine has no C compiler")


def the_library() -> ctypes.CDLL:
    """The compiled library; skips the test on a machine without a compiler, fails where one does not build it."""
    if not HAS_COMPILER:
        pytest.skip("this machine has no C compiler")
    library = cpu_library()
    assert library is not None, "the kernels do not compile"
    return library


def kernels_of(dtype: torch.dtype) -> CpuKernels:
    return CpuKernels(the_library(), dtype)
