"""Whether the fused sampler works on a device: it is compiled, and its choices are those of Torch's operations.

`check_sampler` samples one row of each kind both ways and raises `NoKernel` where the kernels fail or differ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.params import GenerationParams
from worker.engine.backend import LogitsLayout
from worker.engine.cuda.paged_attention import NoKernel, compiled
from worker.engine.cuda.sampling.output import FLOATS, Column, SamplerOutput
from worker.engine.cuda.sampling.reference import sample_in_torch
from worker.engine.cuda.sampling.table import SamplingTable, table_row, write_row
from worker.engine.sampling_row import rules_of

#: A row of each kind.
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"strategy": "sample", "temperature": 3.0, "trace": "none"},
    {"strategy": "sample", "top_k": 20, "top_p": 0.9, "min_p": 0.01, "top_logprobs": 3},
    {"strategy": "nucleus", "top_p": 0.7, "temperature": 2.0},
    {"strategy": "sample", "repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2},
    {"logit_bias": {1: 2.0, 3: -4.0}, "min_new_tokens": 4},
)

#: Largest difference of a logprob or an entropy that the order of sums explains.
TOLERANCE = 1e-3

#: Columns that are the same.
EXACT = (Column.TOKEN_ID, Column.RANK, Column.KEPT, Column.SAW_NAN)


@torch.inference_mode()
def check_sampler(layout: LogitsLayout) -> None:
    """Raises `NoKernel`."""
    with compiled(), torch.cuda.device(layout.device):
        from worker.engine.cuda.sampling.sampler import TritonSampler

        sampler = TritonSampler(len(KINDS), layout.vocab, layout.device)
        logits, batch_index = _logits(layout), torch.arange(1, len(KINDS) + 1, dtype=torch.int32).to(layout.device)
        found, expected = (SamplerOutput.make(len(KINDS), 3, layout.device) for _ in range(2))
        found.packed.fill_(-1)
        sampler(logits, batch_index, _table(layout), found)
        sample_in_torch(logits, batch_index, _table(layout), expected)
        others = [
            column.name.lower()
            for column in EXACT
            if not torch.equal(_column(found, column), _column(expected, column))
        ]
        difference = max(float((_floats(found, column) - _floats(expected, column)).abs().max()) for column in FLOATS)
    if others or not difference <= TOLERANCE:
        raise NoKernel(f"its results differ from torch's: {', '.join([*others, f'numbers by {difference:.3g}'])}")


def _logits(layout: LogitsLayout) -> Tensor:
    """Rows whose probabilities fall evenly, in an order of chance: no sum is within rounding of a limit."""
    generator = torch.Generator().manual_seed(0)
    places = torch.stack([torch.randperm(layout.vocab, generator=generator) for _ in KINDS])
    return (places * -0.05).to(layout.dtype).to(layout.device)


def _table(layout: LogitsLayout) -> SamplingTable:
    table = SamplingTable.make(len(KINDS) + 1, layout.vocab, layout.device)
    for index, kind in enumerate(KINDS, 1):
        params = GenerationParams.model_validate(kind)
        rules = rules_of(params, 3, (0, 2))
        row = table_row(rules, index, 0, params.top_logprobs, params.trace != "none", has_allowed=False)
        write_row(table, index, row, (1, 2, 3), (3, 3))
    return table


def _column(output: SamplerOutput, column: Column) -> Tensor:
    return output.packed[:, column].cpu()


def _floats(output: SamplerOutput, column: Column) -> Tensor:
    return _column(output, column).contiguous().view(torch.float32)
