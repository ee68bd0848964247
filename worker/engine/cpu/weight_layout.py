"""The order of weights that gemm.c wants: panels of 64 outputs, and in them words of 4 bytes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Inputs that are multiplied at a time.
WORD_BYTES = 4

#: Outputs whose weights stand together; PANEL of gemm_avx512.h.
PANEL = 64

#: Rows of a tile, outputs and words; tiles of a group; SIDE and GROUP of gemm_amx.h.
SIDE, GROUP = 16, 4


def alternate(both: Tensor) -> Tensor:
    """Weights or biases [2 * outputs, …] with a panel of the first half before each of the second.

    Zeros fill both halves up to whole panels.
    """
    halves = both.view(2, len(both) // 2, -1)
    padded = F.pad(halves, (0, 0, 0, -halves.shape[1] % PANEL))
    return padded.view(2, -1, PANEL, halves.shape[2]).transpose(0, 1).reshape(-1, *both.shape[1:])


def pack_panels(weight: Tensor) -> Tensor:
    """Weight [out_features, in_features] as [panels, words, PANEL, inputs in a word]; the rest is zeros.

    `in_features` fill whole words.
    """
    per_word = WORD_BYTES // weight.itemsize
    padded = F.pad(weight, (0, 0, 0, -weight.shape[0] % PANEL))
    return padded.view(-1, PANEL, weight.shape[1] // per_word, per_word).transpose(1, 2).contiguous()


def pack_tiles(weight: Tensor) -> Tensor:
    """The same as [panels, inputs * PANEL] in the order in which AMX multiplies; `in_features` fill whole tiles.

    Of up to GROUP tiles of inputs each: [columns of the panel, tiles, words, outputs, inputs in a word].
    """
    panels = pack_panels(weight)
    num_panels, num_words, _, per_word = panels.shape
    tiles = panels.view(num_panels, num_words // SIDE, SIDE, PANEL // SIDE, SIDE, per_word).permute(0, 3, 1, 2, 4, 5)
    groups = [group.reshape(num_panels, -1) for group in tiles.split(GROUP, dim=2)]
    return torch.cat(groups, dim=1)
