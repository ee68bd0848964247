"""Tensors that say `cuda:0`, or another, and compute on the CPU; a mode that makes them where CUDA is asked for.

Every operation goes through `execute`: it refuses mixed devices, notes kernels, copies and waits, lets asynchronous
copies to the host arrive late, and writes what a capture records on its tape.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.support.pretend_cuda.activity import place
from tests.support.pretend_cuda.machine import CaptureForbidden, Copy, DeviceMismatch, Machine, tensors_in

VIEWS = {
    "view", "_unsafe_view", "slice", "select", "transpose", "t", "permute", "expand", "unsqueeze", "squeeze", "detach",
    "alias", "as_strided", "split", "split_with_sizes", "chunk", "unbind", "_reshape_alias", "unflatten", "diagonal",
    "narrow", "view_as_real", "lift_fresh", "view_as",
}  # fmt: skip
WITHOUT_KERNEL = VIEWS | {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
#: Operations whose result's size the host must know.
WAITING = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}
#: Operations that take tensors of several devices.
COPYING = {"copy_", "_to_copy"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class State:
    """The machine of the running test."""

    machine: Machine


class DeviceTensor(Tensor):
    """A tensor of a pretend device; `on_host` holds its values."""

    on_host: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: int) -> DeviceTensor:
        made: DeviceTensor = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device("cuda", device),
        )  # fmt: skip
        made.on_host = inner
        State.machine.track(made, inner, device)
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # noqa: ARG002
        return f"DeviceTensor({self.on_host!r}, {self.device})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,  # noqa: ARG003
    ) -> Any:
        return execute(func, args, kwargs or {})

    def tolist(self) -> Any:
        State.machine.check_capture(False, "tolist")
        State.machine.activity.wait("tolist")
        return self.on_host.tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:  # type: ignore[override]
        return torch.tensor(data, dtype=options.pop("dtype", self.dtype), **options).to(self.device)

    def pin_memory(self, device: Any = None) -> Tensor:  # noqa: ARG002
        raise RuntimeError("cannot pin a tensor of a device")


class DeviceMode(TorchDispatchMode):
    """Sends operations that touch a pretend device, or pinned memory, to `execute`."""

    current: DeviceMode | None = None

    def __enter__(self) -> Any:
        DeviceMode.current = self
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *arguments: Any) -> None:
        super().__exit__(*arguments)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ == "is_pinned":
            return State.machine.is_pinned(args[0])
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, DeviceTensor) or (isinstance(leaf, torch.device) and leaf.type == "cuda"):
                return execute(func, args, kwargs)
        if kwargs.pop("pin_memory", None):
            return State.machine.pin(func(*args, **kwargs))
        return func(*args, **kwargs)


def inner_of(value: Any) -> Any:
    return value.on_host if isinstance(value, DeviceTensor) else value


@cache
def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def execute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Does an operation of torch that a pretend device takes part in."""
    if _is_composite(func):
        with DeviceMode.current or contextlib.nullcontext():
            return func.decompose(*args, **kwargs)
    machine, name = State.machine, func.overloadpacket.__name__
    on_device = [each for each in tensors_in(args, kwargs) if isinstance(each, DeviceTensor)]
    asked = next((each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.device)), None)
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if name in COPYING and _crosses(name, args, asked):
        return _copy(machine, name, args, kwargs, asked)
    device = _device_of(machine, name, args, kwargs, on_device, asked)
    args, kwargs = tree_map(_on_cpu, (args, kwargs))
    _note(machine, name)
    return _run(machine, func, name, args, kwargs, device)


def _on_cpu(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _crosses(name: str, args: Any, asked: torch.device | None) -> bool:
    """Whether a copy goes from one device to another."""
    if name == "copy_":
        return bool(args[0].device != args[1].device)
    source = args[0].device
    if asked is None:
        return False
    return bool(source.type != asked.type or (asked.type == "cuda" and State.machine.index_of(asked) != source.index))


def _device_of(
    machine: Machine, name: str, args: Any, kwargs: Any, on_device: list[DeviceTensor], asked: torch.device | None
) -> int:
    """The one device of an operation. Raises `DeviceMismatch`."""
    devices = {each.device.index for each in on_device}
    if asked is not None and asked.type == "cuda":
        devices.add(machine.index_of(asked))
    strangers = [
        each for each in tensors_in(args, kwargs)
        if not isinstance(each, DeviceTensor) and each.dim() and not (name == "empty_like" and each.is_meta)
    ]  # fmt: skip
    if strangers and name in INDEXING and len(devices) == 1:  # torch copies the indices, and waits
        machine.check_capture(False, "an index on the host")
        machine.activity.wait("index on the host")
        strangers = []
    if len(devices) != 1 or strangers:
        shapes = [f"{each.device} {tuple(each.shape)}" for each in tensors_in(args, kwargs)]
        raise DeviceMismatch(f"{name} of {', '.join(shapes)} at {place()}")
    return int(devices.pop())


def _note(machine: Machine, name: str) -> None:
    if name == "_local_scalar_dense" or name in WAITING:
        machine.check_capture(False, name)
        machine.activity.wait("item" if name == "_local_scalar_dense" else name)
    elif name not in WITHOUT_KERNEL and machine.tape is None:
        machine.activity.kernels[name] += 1


def _run(machine: Machine, func: Any, name: str, args: Any, kwargs: Any, device: int) -> Any:
    target = _written(name, args, kwargs)
    inner_args, inner_kwargs = tree_map(inner_of, (args, kwargs))
    if target is not None:
        return _write_in_place(machine, func, inner_args, inner_kwargs, target)
    out = func(*inner_args, **inner_kwargs)
    made = tree_map(lambda each: DeviceTensor(each, device) if isinstance(each, Tensor) else each, out)
    if machine.tape is not None and name not in VIEWS:

        def repeat() -> None:
            for again, first in zip(tensors_in(func(*inner_args, **inner_kwargs)), tensors_in(out), strict=True):
                if again.data_ptr() != first.data_ptr():
                    first.copy_(again)

        machine.tape.operations.append(repeat)
    return made


def _written(name: str, args: Any, kwargs: Any) -> Any:
    """The tensor that an operation writes into, where it makes none."""
    if "out" in kwargs:
        return kwargs["out"]
    if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], Tensor):
        return args[0]
    return None


def _write_in_place(machine: Machine, func: Any, args: Any, kwargs: Any, target: Any) -> Any:
    """A capture only notes it: the values of older tensors change when the graph is replayed."""

    def repeat() -> None:
        func(*args, **kwargs)

    record_or_run(machine, repeat, [inner_of(target)])
    return target


def record_or_run(machine: Machine, operation: Callable[[], None], written: list[Tensor]) -> None:
    tape = machine.tape
    if tape is None:
        operation()
        return
    tape.operations.append(operation)
    if all(each.untyped_storage().data_ptr() in tape.storages for each in written):
        operation()


def _copy(machine: Machine, name: str, args: Any, kwargs: Any, asked: torch.device | None) -> Any:
    """A copy between host and device, or between devices."""
    source = args[1] if name == "copy_" else args[0]
    if machine.tape is not None:
        raise CaptureForbidden(f"a copy between devices is not permitted while a stream is captured, at {place()}")
    is_async = bool(kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
    if name == "copy_":
        target: Tensor = args[0]
    else:
        on_host = asked is not None and asked.type != "cuda"
        dtype = kwargs.get("dtype") or source.dtype
        empty = torch.empty_like(inner_of(source), dtype=dtype)
        target = empty if on_host else DeviceTensor(empty, machine.index_of(asked))
    if isinstance(source, DeviceTensor) and isinstance(target, DeviceTensor):
        machine.activity.kernels["peer copy"] += 1
        target.on_host.copy_(source.on_host)
    elif isinstance(target, DeviceTensor):
        _copy_to_device(machine, target, source, is_async=is_async)
    else:
        _copy_to_host(machine, target, source, is_async=is_async)
    return target


def _copy_to_device(machine: Machine, target: DeviceTensor, source: Tensor, *, is_async: bool) -> None:
    machine.activity.copies_to_device += 1
    target.on_host.copy_(source)
    if is_async and machine.is_pinned(source):
        machine.begin_copy(target.device.index, Copy(None, source, source.clone()))
    elif source.dim() or source.numel() > 1:
        machine.activity.wait("blocking copy to the device")


def _copy_to_host(machine: Machine, target: Tensor, source: Tensor, *, is_async: bool) -> None:
    assert isinstance(source, DeviceTensor)
    machine.activity.copies_to_host += 1
    if not is_async or not machine.is_pinned(target):
        machine.activity.wait("blocking copy to the host")
        machine.finish_copies(source.device.index, machine.num_begun(source.device.index))
        target.copy_(source.on_host)
        return
    machine.begin_copy(source.device.index, Copy(target, target, source.on_host.clone()))
    poison(target)


def poison(tensor: Tensor) -> None:
    """Fills a tensor with values that nothing right can come of."""
    if tensor.dtype is torch.bool:
        tensor.logical_not_()
    else:
        tensor.fill_(float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max // 2)
