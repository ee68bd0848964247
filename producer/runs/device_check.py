"""Checking that a machine has the GPUs that a command asks for, as far as that can be told without torch."""

from __future__ import annotations

import ctypes
from pathlib import Path

from producer.errors import UsageError

#: Device files of NVIDIA's driver, of its small boards, of WSL, and of AMD's driver, which torch calls CUDA too.
DEVICE_FILES = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd")
DRIVER_LIBRARY = "libcuda.so.1"


def check_device(device: str) -> None:
    """Raises `UsageError` for a GPU on a machine that has none."""
    if "cuda" in device and not _may_have_gpu():
        raise UsageError(
            f"--device {device}: this machine has no GPU (no /dev/nvidia*, no {DRIVER_LIBRARY}); "
            "leave --device out to decode on the CPU"
        )


def _may_have_gpu() -> bool:
    if any(any(Path("/dev").glob(pattern)) for pattern in DEVICE_FILES):
        return True
    try:
        ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return False
    return True
