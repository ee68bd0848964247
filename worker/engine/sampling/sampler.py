"""Gives every sequence that has logits its next token: at once, or a step later where the device samples on its own.

Ends sequences, too, but knows no KV blocks: the scheduler retires what has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Sequence as SequenceOf

from torch import Tensor

from worker.engine.choices import Choice, NotFinite
from worker.engine.config import ModelLimits
from worker.engine.detokenizer import Detokenizer
from worker.engine.out_of_memory import is_device_error
from worker.engine.request import EngineError, InvalidRequest, NaNLogits, Request, request_error
from worker.engine.sampling.batch_sampler import SampleBatch
from worker.engine.sampling.beam_group import advance_beams, start_beams
from worker.engine.sampling.in_flight import InFlight, pick_rows, sampling_rows_of
from worker.engine.sampling.row_sampler import sample_rows
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.step_plan import SampledRow
from worker.engine.scheduling.stopping import check_stop, eos_ids_of
from worker.engine.stats import EngineStats

#: Replaces a group's sequences by the beams of (parent, beam) pairs, which continue on their parents' blocks.
ForkBeams = Callable[[SequenceGroup, SequenceOf[tuple[Sequence, Sequence]]], None]


class Sampler:
    """`groups` are the scheduler's, by request id; one that is no longer there gets no token."""

    def __init__(
        self,
        limits: ModelLimits,
        groups: Mapping[int, SequenceGroup],
        fork_beams: ForkBeams,
        detokenizer: Detokenizer | None,
        stats: EngineStats,
        sample_batch: SampleBatch | None = None,
    ) -> None:
        self._limits = limits
        self._groups = groups
        self._fork_beams = fork_beams
        self._detokenizer = detokenizer
        self._stats = stats
        self._sample_batch = sample_batch

    def collect(self, step: InFlight | None) -> Collection[SequenceGroup]:
        """Takes the tokens that the device sampled in a step; returns the groups they belong to."""
        if step is None:
            return []
        touched: dict[int, SequenceGroup] = {}
        for (_, sequence), choice in zip(step.on_device, step.collect(), strict=True):
            sequence.in_flight_index = None
            if (group := self._group_of(sequence)) is not None:
                self._take(group, sequence, choice)
                touched[sequence.request.id] = group
        return touched.values()

    def sample(self, step: InFlight | None) -> Collection[SequenceGroup]:
        """A token for every row that the host samples; returns the groups they belong to.

        The rows that the device samples are in flight from now on.
        """
        if step is None:
            return []
        step.start_sampling()
        logits = step.take_logits()
        for index, (_, sequence) in enumerate(step.on_device):
            if self._group_of(sequence) is not None:
                sequence.in_flight_index = index
                self._stats.num_generated_tokens += 1
        return self._sample_on_host(logits, step.on_host)

    def _sample_on_host(self, logits: Tensor, rows: Iterable[SampledRow]) -> Collection[SequenceGroup]:
        """A token for every sequence from its row of logits [rows, vocab]; returns the groups they belong to."""
        touched: dict[int, SequenceGroup] = {}
        plain: list[SampledRow] = []
        beams: dict[int, list[SampledRow]] = {}
        for row, sequence in rows:
            if (group := self._group_of(sequence)) is None:
                continue
            self._stats.num_generated_tokens += 1
            touched[sequence.request.id] = group
            (beams.setdefault(sequence.request.id, []) if group.is_beam else plain).append((row, sequence))
        for request_id, rows_of_group in beams.items():
            try:
                self._advance_beams(touched[request_id], logits, rows_of_group)
            except BaseException as error:
                self._fail(touched[request_id], error)
        for sequence, choice in self._sample_plain(logits, plain):
            self._take(touched[sequence.request.id], sequence, choice)
        return touched.values()

    def _group_of(self, sequence: Sequence) -> SequenceGroup | None:
        """The sequence's group; None where the sequence has ended meanwhile, and was computed once too often."""
        group = self._groups.get(sequence.request.id)
        if group is None or sequence.finish_reason is not None:
            return None
        return group if group.has(sequence) else None

    def _advance_beams(self, group: SequenceGroup, logits: Tensor, rows: list[SampledRow]) -> None:
        eos_ids = self._eos_ids(group.request)
        if group.beam_search is None:
            start_beams(group, eos_ids)
        # The batch ordered the beams by their blocks; the search wants them by their index.
        ordered = [row for row, _ in sorted(rows, key=lambda each: each[1].index)]
        self._fork_beams(group, advance_beams(group, logits[ordered], eos_ids, self._detokenizer))

    def _sample_plain(self, logits: Tensor, rows: list[SampledRow]) -> list[tuple[Sequence, Choice]]:
        """The choice of each row; where the rows cannot be sampled together, of each that can be alone."""
        if not rows:
            return []
        sequences = [sequence for _, sequence in rows]
        try:
            return list(zip(sequences, self._choices(logits, rows), strict=True))
        except Exception as error:
            if len(rows) == 1:
                self._fail(self._groups[sequences[0].request.id], error)
                return []
            if is_device_error(error):
                raise
        return [sampled for row in rows for sampled in self._sample_plain(logits, [row])]

    def _choices(self, logits: Tensor, rows: list[SampledRow]) -> list[Choice]:
        sequences = [sequence for _, sequence in rows]
        sampling_rows = sampling_rows_of(sequences, self._limits.eos_token_ids)
        return sample_rows(pick_rows(logits, rows), sampling_rows, self._sample_batch)

    def _take(self, group: SequenceGroup, sequence: Sequence, choice: Choice) -> None:
        """Adds a token to its sequence, which it may end, or fails the group."""
        if group.error is not None:
            return  # another of its sequences failed in this step
        try:
            sequence.append(choice)
            check_stop(sequence, self._eos_ids(sequence.request), self._detokenizer)
        except BaseException as error:
            self._fail(group, error, "the answer cannot be detokenized, to look for its stop strings")

    def _fail(self, group: SequenceGroup, error: BaseException, stage: str | None = None) -> None:
        """Ends the group with the error that came of one of its tokens, unless that is the device's.

        `stage` is given where the host alone was at work.
        """
        if stage is None and is_device_error(error):
            raise error
        position = len(group.sequences[0].token_ids) + 1
        if isinstance(error, NotFinite):
            group.error = _not_finite(error, position, self._limits.dtype)
        else:
            group.error = request_error(stage or f"token {position} of the answer cannot be sampled", error)

    def _eos_ids(self, request: Request) -> tuple[int, ...]:
        return eos_ids_of(request.params, self._limits.eos_token_ids)


def _not_finite(error: NotFinite, position: int, dtype: str) -> EngineError:
    """The error of a request whose `position`th token came of no proper distribution."""
    if not error.is_of_model:
        return InvalidRequest(
            f"token {position} of the answer cannot be sampled: temperature, penalties and biases leave no token with "
            "a probability"
        )
    remedy = "the weights may be damaged" if dtype == "float32" else "try --dtype float32"
    return NaNLogits(f"the model gave NaN at token {position} (dtype {dtype}); {remedy}")
