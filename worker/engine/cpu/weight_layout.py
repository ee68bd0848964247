"""The order in which gemm.c reads weights: blocks of NR output features, and in them VNNI groups of 4 bytes.

VNNI is Intel's name for instructions that take a dot product of the 4 bytes of a lane: one fp32, two bf16
or four int8 of K. The inputs of a group therefore stand side by side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Bytes of K that a lane multiplies at a time.
VNNI_BYTES = 4

#: Output features whose weights stand together; NR of gemm_avx512.h, named as in BLIS.
NR = 64

#: Rows of an AMX tile, and VNNI groups of a row; steps of K whose tiles stand together. As in gemm_amx.h.
TILE_DIM, K_STEPS_L1 = 16, 4


def interleave_gate_up(gate_up: Tensor) -> Tensor:
    """Weights or biases [2 * out_features, …] with a block of NR gates before each block of NR ups.

    Zeros fill both halves up to whole blocks.
    """
    halves = gate_up.view(2, len(gate_up) // 2, -1)
    padded = F.pad(halves, (0, 0, 0, -halves.shape[1] % NR))
    return padded.view(2, -1, NR, halves.shape[2]).transpose(0, 1).reshape(-1, *gate_up.shape[1:])


def pack_vnni(weight: Tensor) -> Tensor:
    """Weight [out_features, in_features] as [blocks of N, VNNI groups of K, NR, inputs of a group].

    Zeros fill the last block; `in_features` fill whole groups.
    """
    per_group = VNNI_BYTES // weight.itemsize
    padded = F.pad(weight, (0, 0, 0, -weight.shape[0] % NR))
    return padded.view(-1, NR, weight.shape[1] // per_group, per_group).transpose(1, 2).contiguous()


def pack_amx(weight: Tensor) -> Tensor:
    """`pack_vnni` as [blocks of N, K * NR], tile by tile in the order of use; `in_features` fill whole tiles.

    Each K_STEPS_L1 steps of K are [columns of tiles in NR, steps, VNNI groups, output features, inputs of a group].
    """
    packed = pack_vnni(weight)
    num_blocks, num_groups, _, per_group = packed.shape
    tiles = packed.view(num_blocks, num_groups // TILE_DIM, TILE_DIM, NR // TILE_DIM, TILE_DIM, per_group)
    parts = [part.reshape(num_blocks, -1) for part in tiles.permute(0, 3, 1, 2, 4, 5).split(K_STEPS_L1, dim=2)]
    return torch.cat(parts, dim=1)
