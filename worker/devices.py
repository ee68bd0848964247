"""Which devices a machine has, and what each worker's environment must be so that it sees only its own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """One worker's device, as the worker itself will call it, and the environment that makes it so."""

    label: str  # what people call it: cpu, cuda:3
    device: str  # what the worker is told
    environment: dict[str, str]


def device_names(devices: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The list that `--devices` means: `auto` is every visible GPU, or the CPU where there is none."""
    if devices != "auto":
        return [device.strip() for device in devices.split(",") if device.strip()]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    count = _count_gpus() if visible is None else len(_visible(environment))
    return [f"cuda:{index}" for index in range(count)] or ["cpu"]


def plan_places(names: list[str], num_cpus: int, environment: Mapping[str, str] = os.environ) -> list[Place]:
    """A place for each name. Several workers on the CPU divide its threads; a GPU's worker sees that GPU alone.

    A name with a plus, `cuda:0+cuda:1`, is one worker on several GPUs.
    """
    num_on_cpu = sum(name == "cpu" for name in names)
    return [_place(name, max(1, num_cpus // max(num_on_cpu, 1)), environment) for name in names]


def _place(name: str, num_threads: int, environment: Mapping[str, str]) -> Place:
    if name == "cpu":
        given = environment.get("NOCTURNE_NUM_THREADS")
        return Place(name, name, {} if given is not None else {"NOCTURNE_NUM_THREADS": str(num_threads)})
    parts = name.split("+")
    if not all(re.fullmatch(r"cuda:\d+", part) for part in parts):
        return Place(name, name, {})
    visible = _visible(environment)
    indices = [part.removeprefix("cuda:") for part in parts]
    own = [visible[int(index)] if int(index) < len(visible) else index for index in indices]
    renamed = "+".join(f"cuda:{place}" for place in range(len(own)))
    return Place(name, renamed, {"CUDA_VISIBLE_DEVICES": ",".join(own)})


def _visible(environment: Mapping[str, str]) -> list[str]:
    return [part.strip() for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]


def _count_gpus() -> int:
    """GPUs of this machine, without loading torch."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
