"""The sampler's results of a step: one row of 32-bit words for each sampled row, so that one copy brings all."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.choices import Choices


class Column(IntEnum):
    """Columns of `SamplerOutput.packed` before the alternatives' ids, then their logprobs."""

    TOKEN_ID = 0
    LOGPROB = 1  # fp32, as the next two
    SAMPLING_LOGPROB = 2
    ENTROPY = 3
    RANK = 4
    KEPT = 5
    SAW_NAN = 6  # a logit was NaN or infinite; the token is 0


#: Columns whose 32 bits are those of a float.
FLOATS = (Column.LOGPROB, Column.SAMPLING_LOGPROB, Column.ENTROPY)


@dataclass(frozen=True)
class SamplerOutput:
    """Tokens and statistics of sampled rows, in the order of the logits' rows."""

    packed: Tensor  # int32 [rows, Column + 2 * num_alternatives]

    @classmethod
    def make(cls, num_rows: int, num_alternatives: int, device: torch.device) -> SamplerOutput:
        width = len(Column) + 2 * num_alternatives
        return cls(torch.zeros(num_rows, width, dtype=torch.int32, device=device))

    @property
    def num_alternatives(self) -> int:
        return (self.packed.shape[1] - len(Column)) // 2

    @property
    def token_ids(self) -> Tensor:
        return self.packed[:, Column.TOKEN_ID]


def choices_of(packed: NDArray[np.int32]) -> Choices:
    """The choices of rows [rows, width] that have come to the host; an alternative of -inf stands for none."""
    floats = packed.view(np.float32)
    columns = packed.astype(np.float64)
    columns[:, FLOATS] = floats[:, FLOATS]
    end = (packed.shape[1] + len(Column)) // 2
    return Choices(columns[:, : Column.SAW_NAN], packed[:, len(Column) : end], floats[:, end:])
