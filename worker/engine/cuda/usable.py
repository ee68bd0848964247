"""Whether the kernels of the sampler and of the rows' state work on a device: they compile, and give what torch gives.

Each check computes small cases both ways and raises `NoKernel` where a kernel fails or differs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.params import GenerationParams
from worker.engine.backend import LogitsLayout
from worker.engine.cuda.decode_graphs import static_batch
from worker.engine.cuda.paged_attention import PAGE_SIZE, NoKernel, compiled
from worker.engine.cuda.running_rows import RunningRows, fill_in_torch, paged_rows_of
from worker.engine.cuda.sampling.output import FLOATS, Column, SamplerOutput
from worker.engine.cuda.sampling.reference import sample_in_torch
from worker.engine.cuda.sampling.table import Number, SamplingTable, table_row, write_row
from worker.engine.model.step_batch import StepBatch
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

#: Blocks of the sequences that a batch is filled with; more than the kernel copies at once.
MAX_BLOCKS = 200

#: Largest difference of a logprob or an entropy that the order of sums explains.
TOLERANCE = 1e-3

#: Factors of the temperature. A draw that they decide differently is within rounding of another token.
ALIKE = (1.0, 1 - 1e-4, 1 + 1e-4)

#: Seeds among which one is looked for that leaves no draw to rounding; few leave some.
MOST_SEEDS = 100

#: Columns that are the same.
EXACT = (Column.TOKEN_ID, Column.RANK, Column.KEPT, Column.SAW_NAN)


@torch.inference_mode()
def check_sampler(layout: LogitsLayout) -> None:
    """Samples a row of each kind. Raises `NoKernel`."""
    with compiled(), torch.cuda.device(layout.device):
        from worker.engine.cuda.sampling.sampler import TritonSampler

        sampler = TritonSampler(len(KINDS), layout.vocab, layout.device)
        logits = checked_logits(layout)
        seed = steady_seed(layout, logits)
        found = SamplerOutput.make(len(KINDS), 3, layout.device)
        found.packed.fill_(-1)
        sampler(logits, _batch_index(layout), _table(layout, seed), found)
        expected = _expected(layout, logits, seed)
        others = [
            column.name.lower()
            for column in EXACT
            if not torch.equal(_column(found, column), _column(expected, column))
        ]
        difference = max(float((_floats(found, column) - _floats(expected, column)).abs().max()) for column in FLOATS)
    if others or not difference <= TOLERANCE:
        raise NoKernel(f"its results differ from torch's: {', '.join([*others, f'numbers by {difference:.3g}'])}")


@torch.inference_mode()
def steady_seed(layout: LogitsLayout, logits: Tensor) -> int:
    """The first seed with which no row's draw is within rounding of another token."""
    return next((seed for seed in range(MOST_SEEDS) if _is_steady(layout, logits, seed)), 0)


def _is_steady(layout: LogitsLayout, logits: Tensor, seed: int) -> bool:
    expected, *others = (_expected(layout, logits, seed, factor) for factor in ALIKE)
    return all(torch.equal(_column(expected, column), _column(other, column)) for column in EXACT for other in others)


def _expected(layout: LogitsLayout, logits: Tensor, seed: int, factor: float = 1.0) -> SamplerOutput:
    """Torch's choices, at temperatures times a factor."""
    table, output = _table(layout, seed), SamplerOutput.make(len(KINDS), 3, layout.device)
    table.numbers[:, Number.TEMPERATURE] *= factor
    sample_in_torch(logits, _batch_index(layout), table, output)
    return output


def _batch_index(layout: LogitsLayout) -> Tensor:
    return torch.arange(1, len(KINDS) + 1, dtype=torch.int32).to(layout.device)


@torch.inference_mode()
def check_fill(device: torch.device) -> None:
    """Fills a batch from rows of which some are padding, and one fills its block table. Raises `NoKernel`."""
    with compiled(), torch.cuda.device(device):
        from worker.engine.cuda.fill_kernel import fill_from_rows

        rows = _running_rows(device)
        found, expected = (static_batch(4, MAX_BLOCKS * PAGE_SIZE, PAGE_SIZE, device) for _ in range(2))
        fill_from_rows(found, rows, PAGE_SIZE)
        fill_in_torch(expected, rows, PAGE_SIZE)
        is_same = all(
            torch.equal(one.cpu(), other.cpu()) for one, other in zip(_tensors(found), _tensors(expected), strict=True)
        )
    if not is_same:
        raise NoKernel("the rows of a step differ from those that torch's operations make")


def _running_rows(device: torch.device) -> RunningRows:
    rows = RunningRows.make(4, 1, MAX_BLOCKS, device)
    for field, values in (
        (rows.step_rows, [3, 0, 1, 0]),
        (rows.num_prompt_ids, [0, MAX_BLOCKS * PAGE_SIZE - 2, 9, 5, 9]),
        (rows.table.num_generated, [7, 2, 9, 1, 9]),
        (rows.table.last_token_ids, [8, 70_000, 9, 2, 9]),
    ):
        field.copy_(torch.tensor(values))
    rows.block_table[1:] = torch.arange(1, 1 + 4 * MAX_BLOCKS, dtype=torch.int32).view(4, -1).to(device)
    return rows


def _tensors(batch: StepBatch) -> list[Tensor]:
    paged = paged_rows_of(batch)
    return [batch.input_ids, batch.positions, batch.slot_mapping, paged.seqused_k, paged.block_table]


def checked_logits(layout: LogitsLayout) -> Tensor:
    """Rows whose probabilities fall evenly, in an order of chance: no cutoff is within rounding of a token.

    None is so small that one of the two would take it for zero.
    """
    generator = torch.Generator().manual_seed(0)
    places = torch.stack([torch.randperm(layout.vocab, generator=generator) for _ in KINDS])
    return (places * -0.05).clamp_min(-60).to(layout.dtype).to(layout.device)


def _table(layout: LogitsLayout, seed: int) -> SamplingTable:
    table = SamplingTable.make(len(KINDS) + 1, layout.vocab, layout.device)
    for index, kind in enumerate(KINDS, 1):
        params = GenerationParams.model_validate(kind)
        rules = rules_of(params, 3, (0, 2))
        row = table_row(rules, seed + index, 0, params.top_logprobs, params.trace != "none", has_allowed=False)
        write_row(table, index, row, (1, 2, 3), (3, 3))
    return table


def _column(output: SamplerOutput, column: Column) -> Tensor:
    return output.packed[:, column].cpu()


def _floats(output: SamplerOutput, column: Column) -> Tensor:
    return _column(output, column).contiguous().view(torch.float32)
