"""CUDA graphs as tapes: the operations of one call, done again on the same tensors; nothing runs in the capture.

A tape refuses what a capture forbids. Its results hold garbage until the first replay.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.support.pretend_cuda.machine import Tape
from tests.support.pretend_cuda.tensors import State, poison


class CUDAGraph:
    """Stands in for `torch.cuda.CUDAGraph`."""

    num_made = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ARG002
        self.tape = Tape()
        self.device = State.machine.current
        type(self).num_made += 1

    def replay(self) -> None:
        assert self.tape.operations, "the graph is empty: it was captured on another device's stream"
        State.machine.activity.graph_launches += 1
        for operation in self.tape.operations:
            operation()

    def reset(self) -> None:
        self.tape = Tape()


class graph:  # noqa: N801 torch's name
    """Stands in for `torch.cuda.graph`."""

    def __init__(self, cuda_graph: CUDAGraph, **options: Any) -> None:
        assert options.get("capture_error_mode") == "thread_local", "another thread's call would break the capture"
        stream = options.get("stream")  # torch's own is of the device that the process captured on first
        assert stream is None or stream.device_index == State.machine.current
        self._graph = cuda_graph

    def __enter__(self) -> None:
        assert State.machine.tape is None
        State.machine.tape = self._graph.tape

    def __exit__(self, *arguments: Any) -> None:
        State.machine.tape = None
        for storage in self._graph.tape.storages.values():
            _poison_storage(storage)


def _poison_storage(inner: Tensor) -> None:
    poison(inner)
