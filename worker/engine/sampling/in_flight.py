"""A step that the device computes while the host goes on: its logits, and the tokens that the device samples itself."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from models.states import Strategy
from worker.engine.choices import Choices
from worker.engine.model.device_copies import to_device
from worker.engine.sampling.batch_sampler import LaunchSampleBatch, may_wait
from worker.engine.sampling.philox import uniforms
from worker.engine.sampling_row import RowState, SamplingRow
from worker.engine.scheduling.sequence import Sequence
from worker.engine.scheduling.step_plan import SampledRow, SampledTokens
from worker.engine.scheduling.stopping import eos_ids_of


class Launched(Protocol):
    """Choices that the device computes and copies to the host while the host goes on."""

    @property
    def token_ids(self) -> Tensor:
        """Tokens [tokens] on the device, where the next step finds them by their index in flight."""

    def collect(self) -> Choices:
        """Waits for the copy to the host."""


class InFlight:
    """A launched step. The rows `on_device` are sampled by the device, all others, `on_host`, by the host.

    The next step may begin before the tokens of the rows `on_device` are collected: it takes them from `token_ids`.
    """

    def __init__(
        self,
        logits: Tensor,
        on_device: list[SampledRow],
        on_host: list[SampledRow],
        launched: Launched | None = None,
    ) -> None:
        self.on_device = on_device
        self.on_host = on_host
        self._logits: Tensor | None = logits
        self._launched = launched

    @property
    def token_ids(self) -> Tensor | None:
        """The tokens in flight [tokens], on the device."""
        return None if self._launched is None else self._launched.token_ids

    @property
    def in_flight_indices(self) -> SequenceOf[int]:
        """The places of the tokens of `on_device` among `token_ids`."""
        return range(len(self.on_device))

    def start_sampling(self) -> None:
        """Begins to sample the rows `on_device`, if that has not begun; called when nothing else is left to do."""

    def take_logits(self) -> Tensor:
        """The logits [rows, vocab], which the step keeps no longer; they hold until the next step is launched."""
        logits, self._logits = self._logits, None
        assert logits is not None
        return logits

    def collect(self) -> list[SampledTokens]:
        """Waits for the tokens of the rows `on_device`."""
        return [] if self._launched is None else [SampledTokens(self.sampled_sequences, self._launched.collect())]

    @cached_property
    def sampled_sequences(self) -> list[Sequence]:
        """The sequences of the rows `on_device`."""
        return [sequence for _, sequence in self.on_device]


class InFlightParts(InFlight):
    """A step that was launched in parts, of which each has its own logits; their tokens in flight lie in one tensor."""

    def __init__(self, parts: SequenceOf[InFlight]) -> None:
        logits, on_host = _joined([part for part in parts if part.on_host] or parts[:1])
        super().__init__(logits, [row for part in parts for row in part.on_device], on_host)
        self._parts = parts

    @property
    def token_ids(self) -> Tensor | None:
        return next((part.token_ids for part in self._parts if part.token_ids is not None), None)

    @property
    def in_flight_indices(self) -> SequenceOf[int]:
        return [index for part in self._parts for index in part.in_flight_indices]

    def collect(self) -> list[SampledTokens]:
        return [sampled for part in self._parts for sampled in part.collect()]


def _joined(parts: SequenceOf[InFlight]) -> tuple[Tensor, list[SampledRow]]:
    """The logits of all parts, copied where there are several, and the rows of them that the host samples."""
    logits = [part.take_logits() for part in parts]
    starts = accumulate((len(each) for each in logits), initial=0)
    on_host = [
        (start + row, sequence) for start, part in zip(starts, parts, strict=False) for row, sequence in part.on_host
    ]
    return logits[0] if len(logits) == 1 else torch.cat(logits), on_host


class BatchInFlight(InFlight):
    """A step whose rows, except those of beams, `launch_sample_batch` samples on the device.

    The host samples all rows where there is no such function, or where a row has a rare rule.
    """

    def __init__(
        self,
        logits: Tensor,
        rows: list[SampledRow],
        launch_sample_batch: LaunchSampleBatch | None = None,
        model_eos_ids: tuple[int, ...] = (),
        ids_in_flight: Tensor | None = None,
    ) -> None:
        """`ids_in_flight` are the tokens of the step before, where the host does not know them yet."""
        plain = [each for each in rows if not is_beam(each)]
        states = [state_of(sequence, model_eos_ids) for _, sequence in plain]
        if launch_sample_batch is None or any(state.rules.is_rare for state in states):
            super().__init__(logits, [], rows)
        else:
            super().__init__(logits, plain, [each for each in rows if is_beam(each)])
        self._launch_sample_batch = launch_sample_batch
        self._model_eos_ids = model_eos_ids
        if not any(may_wait(state.rules) for state in states):
            self.start_sampling(ids_in_flight)

    def start_sampling(self, ids_in_flight: Tensor | None = None) -> None:
        """Begins to sample the rows `on_device`; the step does so itself where sampling never waits for the device.

        The sampling of a nucleus may wait. It begins when the host has nothing left to do meanwhile, and knows the
        tokens of the step before.
        """
        if self.on_device and self._launched is None:
            assert self._logits is not None and self._launch_sample_batch is not None
            picked = pick_rows(self._logits, self.on_device)
            sampling_rows = sampling_rows_of(self.sampled_sequences, self._model_eos_ids)
            self._launched = self._launch_sample_batch(picked, sampling_rows, ids_in_flight)


def pick_rows(logits: Tensor, rows: SequenceOf[SampledRow]) -> Tensor:
    """The logits of the rows [rows, vocab]; not a copy where those are the first ones."""
    indices = [row for row, _ in rows]
    if indices == list(range(len(indices))):
        return logits[: len(indices)]
    return logits[to_device(indices, None, logits.device)]


def draw_numbers(sequences: SequenceOf[Sequence]) -> list[float]:
    """The uniform number of each sequence's next draw, keyed by seed, sample and position."""
    numbers: list[float] = uniforms(
        [sequence.request.params.seed or 0 for sequence in sequences],
        [sequence.index for sequence in sequences],
        [sequence.num_generated for sequence in sequences],
    ).tolist()
    return numbers


def sampling_rows_of(sequences: SequenceOf[Sequence], model_eos_ids: tuple[int, ...]) -> list[SamplingRow]:
    """The inputs of each sequence's next token beside its logits."""
    return [
        _sampling_row(sequence, number, state_of(sequence, model_eos_ids))
        for sequence, number in zip(sequences, draw_numbers(sequences), strict=True)
    ]


def _sampling_row(sequence: Sequence, uniform: float, state: RowState) -> SamplingRow:
    return SamplingRow(
        sequence.request.params,
        sequence.request.prompt_ids,
        sequence.token_ids,
        state.rules.eos_ids,
        uniform,
        max_new_tokens=sequence.max_new_tokens,
        in_flight_index=sequence.in_flight_index,
        kept_state=state,
    )


def state_of(sequence: Sequence, model_eos_ids: tuple[int, ...]) -> RowState:
    """The sampler's state of a sequence, made at its first token."""
    if sequence.row_state is None:
        params, prompt_ids = sequence.request.params, sequence.request.prompt_ids
        sequence.row_state = RowState(params, prompt_ids, eos_ids_of(params, model_eos_ids))
    return sequence.row_state


def is_beam(sampled: SampledRow) -> bool:
    """Whether the row is a beam's, whose token a search decides."""
    return sampled[1].request.params.strategy is Strategy.BEAM
