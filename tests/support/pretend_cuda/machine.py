"""The state of the pretend machine: devices and their memory, copies on their way, pinned memory, the open capture."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.support.pretend_cuda.activity import Activity, place


class CaptureForbidden(RuntimeError):
    """Something that CUDA refuses while a graph is captured."""


class DeviceMismatch(RuntimeError):
    """An operation on tensors of several devices."""


class OverwrittenInFlight(RuntimeError):
    """Pinned memory was written while the device still had to read it."""


@dataclass
class Copy:
    """An asynchronous copy. To the host, its target holds garbage until it is done."""

    target: Tensor | None  # on the host; None for a copy to the device
    source: Tensor  # on the host, where the copy goes to the device
    snapshot: Tensor

    def finish(self) -> None:
        if self.target is not None:
            self.target.copy_(self.snapshot)
        elif not torch.equal(self.source, self.snapshot):
            raise OverwrittenInFlight(f"pinned memory changed before the device had read it, seen at {place()}")


@dataclass
class Tape:
    """The operations of a captured graph: each can be done again on the same tensors, without its Python."""

    operations: list[Callable[[], None]] = field(default_factory=list)
    storages: dict[int, Any] = field(default_factory=dict)  # allocated in the capture, by address


class Machine:
    """The devices `cuda:0` … of one test."""

    def __init__(self, num_devices: int, memory: int) -> None:
        self.num_devices = num_devices
        self.memory = memory  # bytes of each device
        self.current = 0
        self.activity = Activity()
        self.tape: Tape | None = None
        self.copies: list[list[Copy]] = [[] for _ in range(num_devices)]  # of each device's stream, unfinished
        self.num_finished = [0] * num_devices
        self.allocated = [0] * num_devices
        self.peak = [0] * num_devices
        self._storages: list[dict[int, int]] = [{} for _ in range(num_devices)]  # address → live tensors on it
        self._pinned: dict[int, Any] = {}  # address → a tensor that keeps it from being given away again

    def index_of(self, device: torch.device | str | int | None) -> int:
        if device is None:
            return self.current
        if isinstance(device, int):
            return device
        index = torch.device(device).index
        return self.current if index is None else index

    def pin(self, tensor: Tensor) -> Tensor:
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    def begin_copy(self, device: int, copy: Copy) -> None:
        self.copies[device].append(copy)

    def num_begun(self, device: int) -> int:
        return self.num_finished[device] + len(self.copies[device])

    def finish_copies(self, device: int, num_begun: int) -> None:
        """Finishes the first copies of a device's stream."""
        while self.num_finished[device] < num_begun:
            copy = self.copies[device].pop(0)
            self.num_finished[device] += 1
            copy.finish()

    def track(self, tensor: Tensor, inner: Tensor, device: int) -> None:
        """Counts the memory of a tensor that lives as long as `tensor` does. Raises `OutOfMemoryError`."""
        storage = inner.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        live = self._storages[device]
        if address not in live:
            if self.allocated[device] + size > self.memory:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes on cuda:{device}")
            self.allocated[device] += size
            self.peak[device] = max(self.peak[device], self.allocated[device])
            if self.tape is not None:
                self.tape.storages[address] = inner
        live[address] = live.get(address, 0) + 1
        weakref.finalize(tensor, self._release, device, address, size).atexit = False

    def _release(self, device: int, address: int, size: int) -> None:
        live = self._storages[device]
        live[address] -= 1
        if not live[address]:
            del live[address]
            self.allocated[device] -= size

    def check_capture(self, allowed: bool, what: str) -> None:
        if self.tape is not None and not allowed:
            raise CaptureForbidden(f"{what} is not permitted while a stream is captured, at {place()}")


def tensors_in(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
