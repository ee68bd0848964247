"""Copies of small tensors between host and device that do not wait for the device's other work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def to_device(values: Any, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    """A new tensor of (nested) lists of numbers."""
    return send(torch.tensor(values, dtype=dtype), device)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on any device. A copy from memory that is not pinned would wait for the device."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fetch(tensor: Tensor) -> Callable[[], Tensor]:
    """Begins to copy to the host; calling the result waits for the copy, and for no work launched later."""
    if tensor.device.type != "cuda":
        return lambda: tensor
    on_host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    on_host.copy_(tensor, non_blocking=True)
    is_copied = torch.cuda.Event(blocking=True)  # the waiting thread sleeps
    is_copied.record(torch.cuda.current_stream(tensor.device))  # another device's would not wait for the copy

    def wait() -> Tensor:
        is_copied.synchronize()
        return on_host

    return wait
