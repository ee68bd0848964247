"""The machine's devices, and the environment that shows each worker only its own.

Loads no torch: a parent that only starts workers stays small.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

#: The name of no GPU that NVIDIA's container tools put into CUDA_VISIBLE_DEVICES.
NO_DEVICES = "NoDevFiles"


@dataclass(frozen=True)
class DeviceAssignment:
    """A worker's device, by the name the worker itself uses, and the environment that hides the other devices."""

    label: str  # the name in `--devices`: cpu, cuda:3
    device: str  # the name inside the worker
    environment: dict[str, str]


def device_names(devices: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The devices in `--devices`; `auto` is every visible GPU, or the CPU of a machine without any."""
    if devices != "auto":
        return [device.strip() for device in devices.split(",") if device.strip()]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    count = _count_gpus() if visible is None else len(_visible(environment))
    return [f"cuda:{index}" for index in range(count)] or ["cpu"]


def assign_devices(
    names: list[str], num_cpus: int, environment: Mapping[str, str] = os.environ
) -> list[DeviceAssignment]:
    """One assignment per name: workers on the CPU divide its threads, a GPU's worker sees that GPU alone.

    A name with a plus, `cuda:0+cuda:1`, is one worker on several GPUs.
    """
    num_on_cpu = sum(name == "cpu" for name in names)
    return [_assign(name, max(1, num_cpus // max(num_on_cpu, 1)), environment) for name in names]


def _assign(name: str, num_threads: int, environment: Mapping[str, str]) -> DeviceAssignment:
    if name == "cpu":
        given = environment.get("NOCTURNE_NUM_THREADS")
        return DeviceAssignment(name, name, {} if given is not None else {"NOCTURNE_NUM_THREADS": str(num_threads)})
    parts = name.split("+")
    if not all(re.fullmatch(r"cuda:\d+", part) for part in parts):
        return DeviceAssignment(name, name, {})
    visible = _visible(environment)
    indices = [part.removeprefix("cuda:") for part in parts]
    own = [visible[int(index)] if int(index) < len(visible) else index for index in indices]
    renamed = "+".join(f"cuda:{index}" for index in range(len(own)))
    # CUDA would count the fastest card first, nvidia-smi and a person count slots.
    order = {} if visible or "CUDA_DEVICE_ORDER" in environment else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return DeviceAssignment(name, renamed, {**order, "CUDA_VISIBLE_DEVICES": ",".join(own)})


def _visible(environment: Mapping[str, str]) -> list[str]:
    """The GPUs in CUDA_VISIBLE_DEVICES up to the first name of none, such as -1, behind which CUDA shows no other."""
    parts = [part.strip() for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return list(takewhile(lambda part: not part.startswith("-") and part != NO_DEVICES, filter(None, parts)))


def _count_gpus() -> int:
    """The machine's GPUs, counted without torch."""
    in_proc = list(Path("/proc/driver/nvidia/gpus").glob("*"))
    return len(in_proc or list(Path("/dev").glob("nvidia[0-9]*")))  # some containers have no such /proc
