"""A step that the device computes while the host goes on: its logits, and the tokens that the device samples itself."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from torch import Tensor

from models.params import GenerationParams
from models.states import Strategy
from worker.engine.model.device_copies import to_device
from worker.engine.sampling.batch_sampler import ChoicesInFlight, LaunchSampleBatch
from worker.engine.sampling.choices import Choice
from worker.engine.sampling.philox import uniforms
from worker.engine.sampling.row_sampler import needs_row_sampler
from worker.engine.scheduling.sequence import Sequence
from worker.engine.scheduling.step_plan import SampledRow


class InFlight:
    """A launched step. The rows `on_device` are sampled by the device, all others, `on_host`, by the host.

    The next step may begin before the tokens of the rows `on_device` are collected: it takes them from `token_ids`.
    """

    def __init__(
        self, logits: Tensor, rows: list[SampledRow], launch_sample_batch: LaunchSampleBatch | None = None
    ) -> None:
        """`launch_sample_batch` is the device's sampler, where it has one; it takes all rows but beams', or none."""
        plain = [each for each in rows if not _is_beam(each)]
        is_sampled_here = launch_sample_batch is None or any(map(needs_row_sampler, _params_of(plain)))
        self.on_device = [] if is_sampled_here else plain
        self.on_host = rows if is_sampled_here else [each for each in rows if _is_beam(each)]
        self._logits: Tensor | None = logits
        self._launch_sample_batch = launch_sample_batch
        self._numbers = draw_numbers([sequence for _, sequence in self.on_device]) if self.on_device else []
        self._launched: ChoicesInFlight | None = None
        if not any(map(_may_wait, _params_of(self.on_device))):
            self.start_sampling()

    @property
    def token_ids(self) -> Tensor | None:
        """The tokens of the rows `on_device` [tokens], on the device."""
        return None if self._launched is None else self._launched.token_ids

    def start_sampling(self) -> None:
        """Begins to sample the rows `on_device`, if that has not begun.

        The step does so itself where its sampling never waits for the device. A nucleus may: its sampling begins
        when the host has nothing left to do meanwhile.
        """
        if self.on_device and self._launched is None:
            assert self._logits is not None and self._launch_sample_batch is not None
            picked = pick_rows(self._logits, self.on_device)
            self._launched = self._launch_sample_batch(picked, _params_of(self.on_device), self._numbers)

    def take_logits(self) -> Tensor:
        """The logits [rows, vocab], which the step keeps no longer; they hold until the next step is launched."""
        logits, self._logits = self._logits, None
        assert logits is not None
        return logits

    def collect(self) -> list[Choice]:
        """Waits for the tokens of the rows `on_device`."""
        if self._launched is None:
            return []
        choices = self._launched.collect()
        return [choices.of_row(index, params.top_logprobs) for index, params in enumerate(_params_of(self.on_device))]


def pick_rows(logits: Tensor, rows: SequenceOf[SampledRow]) -> Tensor:
    """The logits of the rows [rows, vocab]; not a copy where those are all."""
    indices = [row for row, _ in rows]
    if indices == list(range(logits.shape[0])):
        return logits
    return logits[to_device(indices, None, logits.device)]


def draw_numbers(sequences: SequenceOf[Sequence]) -> list[float]:
    """The uniform number of each sequence's next draw, keyed by seed, sample and position."""
    numbers: list[float] = uniforms(
        [sequence.request.params.seed or 0 for sequence in sequences],
        [sequence.index for sequence in sequences],
        [sequence.num_generated for sequence in sequences],
    ).tolist()
    return numbers


def _params_of(rows: SequenceOf[SampledRow]) -> list[GenerationParams]:
    return [sequence.request.params for _, sequence in rows]


def _is_beam(sampled: SampledRow) -> bool:
    return sampled[1].request.params.strategy is Strategy.BEAM


def _may_wait(params: GenerationParams) -> bool:
    return params.strategy is Strategy.NUCLEUS and params.top_p < 1.0
