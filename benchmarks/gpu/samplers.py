"""The fused sampler: its tokens and kept sets beside Torch's, and its time beside the logits' bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.bound import Ceilings
from benchmarks.gpu.setting import Setting
from models.params import GenerationParams
from worker.engine.cuda.sampling.output import Column, SamplerOutput
from worker.engine.cuda.sampling.reference import sample_in_torch
from worker.engine.cuda.sampling.sampler import SampledKinds, TritonSampler
from worker.engine.cuda.sampling.table import SamplingTable, table_row, write_row
from worker.engine.sampling_row import rules_of


@dataclass(frozen=True)
class Rule:
    """Parameters that every row of a step has, and the spread of its logits."""

    name: str
    params: dict[str, Any]
    kinds: SampledKinds
    spread: float = 3.0


PLAIN, TRACED = SampledKinds(has_cuts=False, has_traces=False), SampledKinds(has_cuts=False)
RULES = [
    Rule("greedy, no trace", {"trace": "none"}, PLAIN),
    Rule("greedy", {}, TRACED),
    Rule("sample, no trace", {"strategy": "sample", "trace": "none"}, PLAIN),
    Rule("sample", {"strategy": "sample"}, TRACED),
    Rule("top_k 50", {"strategy": "sample", "top_k": 50}, SampledKinds()),
    Rule("top_p 0.9", {"strategy": "sample", "top_p": 0.9}, SampledKinds()),
    Rule("nucleus 0.9", {"strategy": "nucleus", "top_p": 0.9}, SampledKinds()),
    Rule("nucleus 0.9 of flat logits", {"strategy": "nucleus", "top_p": 0.9}, SampledKinds(), spread=0.6),
    Rule("penalties", {"strategy": "sample", "repetition_penalty": 1.1, "presence_penalty": 0.5}, TRACED),
]


def measure(setting: Setting, ceilings: Ceilings) -> None:
    rows, vocab = (2, 5000) if setting.is_tiny else (setting.max_num_seqs, 151_936)
    sampler = TritonSampler(rows, vocab, setting.device)
    for rule in RULES[::4] if setting.is_tiny else RULES:
        setting.attempt(rule.name, partial(compare, setting, sampler, rule, rows, vocab))
        setting.attempt(rule.name, partial(time_rule, setting, sampler, rule, ceilings, rows, vocab))


def compare(setting: Setting, sampler: TritonSampler, rule: Rule, rows: int, vocab: int) -> None:
    """Tokens of the kernels and of Torch for the same logits."""
    logits = logits_of(setting, rule, rows, vocab)
    found, expected = (SamplerOutput.make(rows, 0, setting.device) for _ in range(2))
    found.packed.fill_(torch.tensor(torch.nan).view(torch.int32).item())
    with np.errstate(all="ignore"):  # the interpreter's arithmetic is NumPy's
        sampler(logits, indices(setting, rows), table_of(setting, rule, rows, vocab), found, rule.kinds)
    sample_in_torch(logits, indices(setting, rows), table_of(setting, rule, rows, vocab), expected)
    others = {
        column.name.lower(): int((found.packed[:, column] != expected.packed[:, column]).sum())
        for column in (Column.TOKEN_ID, Column.KEPT, Column.RANK)
    }
    is_same = found.packed[:, Column.TOKEN_ID] == expected.packed[:, Column.TOKEN_ID]
    errors = [
        float((floats(found, column) - floats(expected, column))[is_same].abs().max())
        for column in (Column.LOGPROB, Column.SAMPLING_LOGPROB, Column.ENTROPY)
    ]
    # Sums in another order move the edge of a kept set, and a draw that falls on it, by a token once in a while.
    is_right = max(others.values()) <= rows // 64 and all(error < 1e-3 for error in errors)
    told = ", ".join(f"{name} {count}" for name, count in others.items())
    setting.tell(f"sampler, {rule.name:27} of {rows} rows other {told}; largest error {max(errors):.1e}", is_right)


def time_rule(setting: Setting, sampler: TritonSampler, rule: Rule, ceilings: Ceilings, rows: int, vocab: int) -> None:
    logits, table = logits_of(setting, rule, rows, vocab), table_of(setting, rule, rows, vocab)
    output, batch_index = SamplerOutput.make(rows, 0, setting.device), indices(setting, rows)
    with np.errstate(all="ignore"):
        spent = setting.milliseconds(lambda: sampler(logits, batch_index, table, output, rule.kinds))
    least = 1000 * logits.numel() * logits.itemsize / ceilings.bandwidth
    print(f"sampler, {rule.name:27} {spent:.3f} ms; one read of the logits {least:.3f} ms", flush=True)


def logits_of(setting: Setting, rule: Rule, rows: int, vocab: int) -> Tensor:
    generator = torch.Generator(setting.device).manual_seed(0)
    logits = torch.randn(rows, vocab, generator=generator, device=setting.device)
    return (logits * rule.spread).to(torch.bfloat16)


def table_of(setting: Setting, rule: Rule, rows: int, vocab: int) -> SamplingTable:
    table = SamplingTable.make(rows, vocab, setting.device)
    params = GenerationParams(**rule.params)
    prompt_ids = tuple(range(20))
    for index in range(rows):
        row = table_row(rules_of(params, len(prompt_ids), ()), index, 0, 0, params.trace != "none", False)
        write_row(table, index, row, prompt_ids, ())
    return table


def indices(setting: Setting, rows: int) -> Tensor:
    return torch.arange(rows, dtype=torch.int32, device=setting.device)


def floats(output: SamplerOutput, column: Column) -> Tensor:
    return output.packed[:, column].contiguous().view(torch.float32)
