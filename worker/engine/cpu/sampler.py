"""The sampler in C of `csrc/sampling.c`, and the block of parameters as it reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.choices import COLUMNS, Choices
from worker.engine.cpu.library import pointer
from worker.engine.sampling_row import RowState, SamplingRow, SamplingRules

_RULES = (
    "temperature", "top_p", "nucleus_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
_COUNTS = ("top_k", "num_alternatives", "num_prompt_ids", "num_token_ids", "num_biased", "num_banned")
_POINTERS = ("prompt_ids", "token_ids", "biased_ids", "banned_ids", "biases", "allowed")

#: The `RowParams` of sampling.h.
ROW_PARAMS = np.dtype(
    [(name, np.float64) for name in (*_RULES, "uniform")]
    + [(name, np.int64) for name in _COUNTS]
    + [(name, np.uintp) for name in _POINTERS]
)


class CpuSampler:
    """A `SampleBatch` that computes each row on one thread."""

    def __init__(self, library: ctypes.CDLL) -> None:
        # Logits may be of another dtype than the model: some architectures compute them in fp32.
        self._sample = {torch.bfloat16: library.sample_bf16, torch.float32: library.sample_f32}

    def __call__(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Choices:
        logits = (logits if logits.dtype in self._sample else logits.float()).contiguous()
        num_rows, vocab = logits.shape
        k = min(max(row.params.top_logprobs for row in rows), vocab)
        block = parameter_block(rows)
        columns = torch.empty(num_rows, len(COLUMNS), dtype=torch.float64)
        top_ids, top_logprobs = torch.empty(num_rows, k, dtype=torch.int32), torch.empty(num_rows, k)
        pointers = map(pointer, (columns, top_ids, top_logprobs, logits))
        sizes = map(ctypes.c_int64, (num_rows, vocab, k))
        if self._sample[logits.dtype](*pointers, ctypes.c_void_p(block.ctypes.data), *sizes):
            raise MemoryError("not enough memory to sample tokens")
        return Choices(columns.numpy(), top_ids.numpy(), top_logprobs.numpy())


def parameter_block(rows: Sequence[SamplingRow]) -> NDArray[np.void]:
    """The rows' parameters [rows] of `ROW_PARAMS`; it points into the rows' states, which must outlive it."""
    block = np.frombuffer(bytearray(b"".join(_packed(row.state) for row in rows)), ROW_PARAMS)
    block["uniform"] = [row.uniform for row in rows]
    block["num_alternatives"] = [row.params.top_logprobs for row in rows]
    for index, row in enumerate(rows):
        if row.has_edits:
            _point_to_tokens(block[index], row)
    return block


def _packed(state: RowState) -> bytes:
    """The fields that stay the same from step to step; made once."""
    if not state.packed:
        rules: SamplingRules = state.rules
        packed = np.zeros((), ROW_PARAMS)
        for name in (*_RULES, "top_k"):
            packed[name] = getattr(rules, name)
        packed["prompt_ids"], packed["num_prompt_ids"] = state.prompt_ids.buffer_info()
        packed["biased_ids"], packed["num_biased"] = state.biased_ids.buffer_info()
        packed["biases"] = state.biases.buffer_info()[0]
        state.packed = packed.tobytes()
    return state.packed


def _point_to_tokens(params: np.void, row: SamplingRow) -> None:
    """Writes the fields that change from step to step into the row's parameters."""
    params["token_ids"], params["num_token_ids"] = row.state.token_ids.buffer_info()
    params["banned_ids"], params["num_banned"] = row.state.banned_ids(row.num_generated).buffer_info()
    if row.allowed is not None:
        params["allowed"] = row.allowed.data_ptr()
