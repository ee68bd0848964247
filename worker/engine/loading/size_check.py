"""Refuses by arithmetic a model whose weights the memory does not hold, before any of them is read.

The size is that of the configuration's parameters in the type they are computed in: quantized weights are multiplied
out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from models.checkpoint.quantization import quantization_name
from models.checkpoint.weights import loaded_files
from worker.engine.loading.auto_class import auto_class
from worker.engine.request import OutOfMemory

GB = 1e9

#: Bytes that a byte of a file becomes at most: 2 bits may become a number of 4 bytes.
MAX_EXPANSION = 16


def check_size(
    name: str, folder: Path, given: Mapping[str, Any], config: Any, dtype: torch.dtype, devices: Iterable[torch.device]
) -> None:
    """Raises `OutOfMemory` for a model that is larger than its devices' free memory, or than the host's.

    Of `given`, the configuration as its file has it, only the quantization counts. The host holds the weights before a
    device does.
    """
    rooms = {f"{each}": _free(each) for each in devices if each.type == "cuda"}
    on_host = psutil.virtual_memory().total
    most = MAX_EXPANSION * sum(path.stat().st_size for path in loaded_files(folder, given))
    free = sum(rooms.values()) if rooms else on_host
    if most <= min(on_host, free):
        return
    needed = num_bytes(config, dtype)
    if needed > free and rooms:
        remedy = "take a smaller model, or more GPUs for it, such as --devices cuda:0+cuda:1"
        raise _too_large(name, given, needed, dtype, f"{free / GB:.1f} GB are free on {_and(rooms)}", remedy)
    if needed > on_host:
        raise _too_large(name, given, needed, dtype, f"this machine has {on_host / GB:.1f} GB", "take a smaller model")


def num_bytes(config: Any, dtype: torch.dtype) -> int:
    """The bytes of a configuration's parameters; tied ones count once."""
    plain = copy.deepcopy(config)
    for part in (plain, plain.get_text_config()):
        part.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        model = auto_class(plain).from_config(plain, dtype=dtype)
    model.tie_weights()
    return sum(parameter.nbytes for parameter in model.parameters())


def _free(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    return free


def _too_large(
    name: str, given: Mapping[str, Any], needed: int, dtype: torch.dtype, room: str, remedy: str
) -> OutOfMemory:
    quantization, of = quantization_name(given), str(dtype).removeprefix("torch.")
    multiplied_out = f", for its weights ({quantization}) are multiplied out" if quantization else ""
    smaller = ", or --dtype bfloat16" if dtype is torch.float32 else ""
    return OutOfMemory(f"{name!r} takes {needed / GB:.1f} GB in {of}{multiplied_out}, and {room}; {remedy}{smaller}")


def _and(names: Iterable[str]) -> str:
    return " and ".join(names)
