"""The gated delta rule in C, in place on the states of a step's sequences: the `DeltaRule` of a CPU."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from worker.engine.cpu.library import pointer
from worker.engine.model.recurrent.delta_rule import DeltaNet
from worker.engine.model.step_batch import StateRows


class _DeltaNet(ctypes.Structure):
    """The `DeltaNet` of delta_net.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_key_heads", "num_value_heads", "key_dim", "value_dim")),
        *((name, ctypes.c_int64) for name in ("kernel_size", "row_size")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("conv_weight", "conv_bias", "decay_rates", "dt_bias", "norm_weight")),
    ]


class _SequenceRows(ctypes.Structure):
    """The `SequenceRows` of delta_net.c."""

    _fields_ = [
        ("num_sequences", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("rows", "cu_seqlens", "states", "begins")),
    ]


class CpuDeltaRule:
    """A `DeltaRule` on a function of delta_net.c."""

    def __init__(self, library: ctypes.CDLL, suffix: str) -> None:
        """`suffix` is that of the rows' dtype."""
        self._delta_net = getattr(library, f"delta_net_{suffix}")

    def __call__(self, net: DeltaNet, projected: Tensor, states: StateRows, pools: tuple[Tensor, Tensor]) -> Tensor:
        output = projected.new_zeros(len(projected), net.value_size)
        self.write(output, net, projected, states, pools)
        return output

    def write(
        self, output: Tensor, net: DeltaNet, projected: Tensor, states: StateRows, pools: tuple[Tensor, Tensor]
    ) -> None:
        """Writes the output's rows that belong to a sequence."""
        inputs, matrices = pools
        assert inputs.dtype is projected.dtype and matrices.dtype is torch.float32
        projected, rows = projected.contiguous(), states.sequences
        constants = (net.conv_weight, net.conv_bias, net.decay_rates, net.dt_bias, net.norm_weight)
        sizes = (net.num_key_heads, net.num_value_heads, net.key_dim, net.value_dim, net.num_kept + 1, net.row_size)
        layer = _DeltaNet(*sizes, net.eps, *map(pointer, constants))
        tensors = (rows.rows, rows.cu_seqlens, rows.states, rows.begins)
        sequences = _SequenceRows(len(rows.states), *map(pointer, tensors))
        pointers = map(pointer, (output, projected, inputs, matrices))
        if self._delta_net(*pointers, ctypes.byref(layer), ctypes.byref(sequences)):
            raise MemoryError("not enough memory for the recurrent layers of a step")
