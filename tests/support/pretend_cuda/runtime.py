"""`torch.cuda` as the pretend machine answers it: devices, streams, events, memory. `pretend_cuda` puts it in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tests.support.pretend_cuda import graphs
from tests.support.pretend_cuda.guard import cuda_guard
from tests.support.pretend_cuda.machine import Machine
from tests.support.pretend_cuda.tensors import DeviceMode, State

GIB = 2**30


class Stream:
    """Stands in for `torch.cuda.Stream`; all streams of a device are one here."""

    num_made = 0

    def __init__(self, device: Any = None, **options: Any) -> None:  # noqa: ARG002
        type(self).num_made += 1
        self.device_index = State.machine.index_of(device)

    def wait_stream(self, stream: Stream) -> None:
        pass

    def wait_event(self, event: Event) -> None:
        pass

    def synchronize(self) -> None:
        State.machine.activity.wait("stream")
        State.machine.finish_copies(self.device_index, State.machine.num_begun(self.device_index))


class CurrentStream(Stream):
    """The stream that is there already."""

    num_made = 0


class Event:
    """Stands in for `torch.cuda.Event`: waiting for it finishes the copies that its stream had begun before it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ARG002
        self._device: int | None = None
        self._num_begun = 0

    def record(self, stream: Stream | None = None) -> None:
        self._device = State.machine.current if stream is None else stream.device_index
        self._num_begun = State.machine.num_begun(self._device)

    def synchronize(self) -> None:
        assert self._device is not None, "the event was never recorded"
        State.machine.finish_copies(self._device, self._num_begun)

    def query(self) -> bool:
        return self._device is None or State.machine.num_finished[self._device] >= self._num_begun


@contextmanager
def on_stream(stream: Stream | None) -> Iterator[None]:
    """`torch.cuda.stream` makes the stream's device the current one."""
    before = State.machine.current
    if stream is not None:
        State.machine.current = stream.device_index
    yield
    State.machine.current = before


@contextmanager
def on_device(device: Any) -> Iterator[None]:
    before = State.machine.current
    State.machine.current = State.machine.index_of(device)
    try:
        yield
    finally:
        State.machine.current = before


def _set_device(device: Any) -> None:
    State.machine.current = State.machine.index_of(device)


def _synchronize(device: Any = None) -> None:
    Stream(device).synchronize()


def _pin(tensor: Tensor, device: Any = None) -> Tensor:  # noqa: ARG001
    return State.machine.pin(tensor.clone())


def _reset_peak(device: Any = None) -> None:
    index = State.machine.index_of(device)
    State.machine.peak[index] = State.machine.allocated[index]


def _properties(device: Any = None) -> Any:  # noqa: ARG001
    return SimpleNamespace(
        name="pretend", multi_processor_count=132, major=9, minor=0, total_memory=State.machine.memory
    )


def _functions(capability: tuple[int, int]) -> dict[str, Any]:
    """The parts of `torch.cuda`, by name."""
    machine = State.machine
    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: machine.num_devices,
        "current_device": lambda: machine.current,
        "set_device": _set_device,
        "device": on_device,
        "get_device_name": lambda *_: "pretend",
        "get_device_capability": lambda *_: capability,
        "get_device_properties": _properties,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or capability >= (8, 0),
        "mem_get_info": lambda device=None: (
            machine.memory - machine.allocated[machine.index_of(device)], machine.memory
        ),
        "memory_allocated": lambda device=None: machine.allocated[machine.index_of(device)],
        "memory_reserved": lambda device=None: machine.allocated[machine.index_of(device)],
        "max_memory_allocated": lambda device=None: machine.peak[machine.index_of(device)],
        "max_memory_reserved": lambda device=None: machine.peak[machine.index_of(device)],
        "reset_peak_memory_stats": _reset_peak,
        "empty_cache": lambda: None,
        "synchronize": _synchronize,
        "Stream": Stream,
        "Event": Event,
        "stream": on_stream,
        "set_stream": lambda stream: _set_device(stream.device_index),
        "set_sync_debug_mode": lambda mode: setattr(machine.activity, "refuses_waits", mode == "error"),
        "get_sync_debug_mode": lambda: "error" if machine.activity.refuses_waits else "default",
        "current_stream": CurrentStream,
        "CUDAGraph": graphs.CUDAGraph,
        "graph": graphs.graph,
        "graph_pool_handle": object,
    }  # fmt: skip


@contextmanager
def pretend_cuda(num_devices: int = 1, memory: int = GIB, capability: tuple[int, int] = (9, 0)) -> Iterator[Machine]:
    """A machine with CUDA devices as long as the context lasts; `memory` is in bytes of each."""
    State.machine = Machine(num_devices, memory)
    no_grad = torch.no_grad
    entered: list[Any] = []

    def enter(_: Any) -> None:  # inference tensors know no version, and wrappers need one
        entered.append(no_grad())
        entered[-1].__enter__()

    def leave(_: Any, *arguments: Any) -> None:
        entered.pop().__exit__(*arguments)

    with ExitStack() as stack:
        stack.enter_context(cuda_guard())
        stack.enter_context(patch.multiple(torch.cuda, **_functions(capability)))
        stack.enter_context(patch.object(torch.inference_mode, "__enter__", enter))
        stack.enter_context(patch.object(torch.inference_mode, "__exit__", leave))
        stack.enter_context(patch.object(Tensor, "pin_memory", _pin))
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        torch._C._set_only_lift_cpu_tensors(True)  # a list of numbers becomes a tensor of the host, then is copied
        stack.enter_context(DeviceMode())  # type: ignore[no-untyped-call]
        yield State.machine
