"""The launch of the sampler's kernels; the same function of the same tensors as `reference.sample_in_torch`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.cuda.sampling import cuts, reduction, trace, whole_rows
from worker.engine.cuda.sampling.output import Column, SamplerOutput
from worker.engine.cuda.sampling.table import Integer, Number, SamplingTable

#: Logits that a program reduces.
BLOCK = 4096

#: Candidates of a row that are kept beside it; the most alternatives of a job need fewer.
CAPACITY = 4096

#: Candidates among which a row's cutoffs are found, in registers; where they are few, in a few.
CUT_CAPACITY, FEW = 2048, 512

#: Low bits of a logit's fp32 pattern that its dtype leaves zero.
ZERO_BITS = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}

#: No fused multiplication and addition, which one kernel would have and another not.
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}

#: Of a kernel that reads a whole row several times, so many tokens at once.
ROW_BLOCK, ROW_OPTIONS = 2048, {**OPTIONS, "num_warps": 16}


@dataclass(frozen=True)
class SampledKinds:
    """The kernels that the rows of a step need beside the first two; more do no harm."""

    has_cuts: bool = True  # some row has `top_k`, `top_p`, a nucleus or `min_p`
    has_traces: bool = True


class TritonSampler:
    """Samples rows up to a number, in memory of its own whose addresses never change, so that a graph holds them."""

    def __init__(
        self, max_rows: int, vocab: int, device: torch.device, block: int = BLOCK, capacity: int = CAPACITY
    ) -> None:
        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(max_rows, *shape, dtype=dtype, device=device)

        self._block, self._capacity = block, capacity
        self._num_blocks = -(-vocab // block)
        num_subblocks = self._num_blocks * block // reduction.SUBBLOCK.value
        self._subblocks_padded = _power_of_two(num_subblocks)
        self._partial = empty(reduction.NUM_PARTIAL.value, self._num_blocks)
        self._submax = empty(2, num_subblocks)
        self._statistics = empty(reduction.NUM_STATISTICS.value, dtype=torch.float64)
        self._listed = empty(num_subblocks, dtype=torch.int32)
        self._candidate_scores = empty(capacity)
        self._candidate_ids = empty(capacity, dtype=torch.int32)

    def __call__(
        self,
        logits: Tensor,
        batch_index: Tensor,
        table: SamplingTable,
        output: SamplerOutput,
        kinds: SampledKinds = SampledKinds(),
    ) -> None:
        """Samples a token for each row of logits [rows, vocab] by the table's row of its batch index int32 [rows].

        Writes `output`, and into the table the newest tokens, their number and the history. Launches two kernels, two
        more for cuts, one for ranks and one for alternatives.
        """
        num_rows, vocab = logits.shape
        block, num_blocks = self._block, self._num_blocks
        packed, width = output.packed, output.packed.shape[1]
        rows = (logits, logits.stride(0), vocab, batch_index, table.numbers, table.integers, table.num_generated)
        edits = (table.edit_ids, table.edit_values, table.edit_ranges, table.history, table.allowed)
        reduction.reduce_blocks[(num_rows, num_blocks)](
            self._partial, self._submax, *rows, *edits, BLOCK=block, **OPTIONS
        )
        reduction.sample_plain_rows[(num_rows,)](
            packed, width, self._statistics, self._partial, num_blocks, *rows, table.last_token_ids, *edits,
            BLOCK=block, NUM_BLOCKS_PADDED=_power_of_two(num_blocks), **OPTIONS,
        )  # fmt: skip
        if kinds.has_cuts:
            shift, capacity = ZERO_BITS[logits.dtype], min(self._capacity, CUT_CAPACITY)
            cuts.draw_from_candidates[(num_rows,)](
                packed, width, self._statistics, self._submax, num_blocks, self._listed, self._candidate_scores,
                self._candidate_ids, *rows, table.last_token_ids, *edits, BLOCK=block, CAPACITY=capacity,
                FEW=min(capacity, FEW), SUBBLOCKS_PADDED=self._subblocks_padded, SHIFT=shift, **OPTIONS,
            )  # fmt: skip
            whole_rows.draw_from_whole_rows[(num_rows,)](
                packed, width, self._statistics, *rows, table.last_token_ids, *edits, BLOCK=min(block, ROW_BLOCK),
                SHIFT=shift, **ROW_OPTIONS,
            )  # fmt: skip
        if kinds.has_traces:
            trace.count_ranks[(num_rows, num_blocks)](
                packed, width, self._partial, *rows[:4], table.integers, BLOCK=block, **OPTIONS
            )
        if output.num_alternatives:
            self.find_alternatives(logits, batch_index, table, output)

    def find_alternatives(
        self, logits: Tensor, batch_index: Tensor, table: SamplingTable, output: SamplerOutput
    ) -> None:
        """Writes the alternatives of the rows that were sampled last into their columns of `output`."""
        num_rows, vocab = logits.shape
        packed, width = output.packed, output.packed.shape[1]
        trace.find_alternatives[(num_rows,)](
            packed, width, output.num_alternatives, self._statistics, self._partial, self._submax, self._num_blocks,
            self._candidate_scores, self._candidate_ids, logits, logits.stride(0), vocab, batch_index, table.integers,
            BLOCK=self._block, CAPACITY=self._capacity, SUBBLOCKS_PADDED=self._subblocks_padded,
            SHIFT=ZERO_BITS[logits.dtype], **OPTIONS,
        )  # fmt: skip

    def most_bytes(self, num_rows: int, vocab: int, itemsize: int, *, draws: bool, kinds: SampledKinds) -> int:
        """The most that rows of bf16 or fp32 read and write, without edits and alternatives, where candidates fit."""
        parameters = 8 * (len(Number) + len(Integer))
        partial = reduction.NUM_PARTIAL.value * 4 * self._num_blocks
        reduced = vocab * itemsize + partial + parameters * self._num_blocks
        chosen = 2 * (partial + parameters) + 4 * len(Column) + draws * self._block * itemsize
        ranked = kinds.has_traces * draws * (vocab * itemsize + (parameters + 4) * self._num_blocks)
        # Subblocks are listed, their tokens read, candidates written with their ids and read once.
        num_subblocks = self._num_blocks * self._block // reduction.SUBBLOCK.value
        cut = kinds.has_cuts * (parameters * 4 + num_subblocks * 16 + vocab * itemsize + CUT_CAPACITY * 16)
        return int(num_rows * (reduced + chosen + ranked + cut))


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
