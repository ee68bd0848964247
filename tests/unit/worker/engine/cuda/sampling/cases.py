"""Sampled rows for the GPU's sampler, and the choices that the row sampler makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.params import GenerationParams
from worker.engine.choices import Choice
from worker.engine.cuda.sampling.output import Column, SamplerOutput, choices_of
from worker.engine.cuda.sampling.table import SamplingTable, table_row, write_row
from worker.engine.sampling.philox import uniforms
from worker.engine.sampling.row_sampler import sample_rows
from worker.engine.sampling_row import SamplingRow, rules_of

CPU = torch.device("cpu")


class Sampler(Protocol):
    def __call__(self, logits: Tensor, batch_index: Tensor, table: SamplingTable, output: SamplerOutput) -> None: ...


@dataclass(frozen=True)
class Case:
    """A sequence whose next token is sampled from these logits [vocab]."""

    logits: Tensor
    params: GenerationParams
    prompt_ids: tuple[int, ...] = (1,)
    token_ids: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()
    sample_index: int = 0
    allowed: tuple[int, ...] | None = None

    @property
    def seed(self) -> int:
        return self.params.seed or 0

    def allowed_bits(self) -> Tensor | None:
        if self.allowed is None:
            return None
        bits = torch.zeros(-(-len(self.logits) // 32) * 32, dtype=torch.int64)
        bits[list(self.allowed)] = 1
        return (bits.view(-1, 32) << torch.arange(32)).sum(-1).to(torch.int32)

    def expected(self) -> Choice:
        """The row sampler's choice."""
        number = uniforms([self.seed], [self.sample_index], [len(self.token_ids)])[0]
        row = SamplingRow(
            self.params, self.prompt_ids, self.token_ids, self.eos_ids, float(number), allowed=self.allowed_bits()
        )
        return sample_rows(self.logits[None], [row])[0]


def table_of(cases: list[Case]) -> SamplingTable:
    """A table that holds the cases from its second row on."""
    vocab = len(cases[0].logits)
    table = SamplingTable.make(len(cases) + 1, vocab, CPU)
    for index, case in enumerate(cases, 1):
        rules = rules_of(case.params, len(case.prompt_ids), case.eos_ids)
        wants_trace = case.params.trace != "none"
        has_allowed = case.allowed is not None
        row = table_row(rules, case.seed, case.sample_index, case.params.top_logprobs, wants_trace, has_allowed)
        write_row(table, index, row, case.prompt_ids, case.token_ids)
        if (bits := case.allowed_bits()) is not None:
            table.allowed[index] = bits
    return table


@dataclass(frozen=True)
class Sampled:
    table: SamplingTable
    packed: Tensor
    choices: list[Choice]


def sample(sampler: Sampler, cases: list[Case]) -> Sampled:
    """Samples the cases in one step, beside a row of padding."""
    table = table_of(cases)
    most = max(case.params.top_logprobs for case in cases)
    output = SamplerOutput.make(len(cases) + 1, most, CPU)
    output.packed.fill_(torch.tensor(torch.nan).view(torch.int32).item())
    logits = torch.stack([*(case.logits for case in cases), torch.zeros_like(cases[0].logits)])
    batch_index = torch.tensor([*range(1, len(cases) + 1), 0], dtype=torch.int32)
    sampler(logits, batch_index, table, output)
    choices = choices_of(output.packed.numpy())
    made = [choices.of_row(index, case.params.top_logprobs) for index, case in enumerate(cases)]
    assert [bool(each) for each in output.packed[:-1, Column.SAW_NAN]] == [
        not bool(torch.isfinite((case.logits.float() - case.logits.float().max()).exp().sum())) for case in cases
    ]
    return Sampled(table, output.packed, made)
