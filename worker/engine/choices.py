"""The values that every sampler returns: one row's `Choice`, or the `Choices` of many rows.

Numbers on the host, without torch: storing a trace must not load it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Choice:
    """A sampled token and its statistics: one entry of a trace."""

    token_id: int
    logprob: float  # nats, raw distribution
    sampling_logprob: float  # nats, distribution drawn from
    entropy: float  # nats, raw distribution
    rank: int  # 1 is the most probable
    kept: int  # tokens that could have been drawn
    alternatives: list[tuple[int, float]]  # (token id, raw logprob), the most probable first
    beam: int | None = None  # row of the beam group that the token's history came from

    @property
    def is_nan(self) -> bool:
        """Whether there was nothing to draw from: a logit was NaN or infinite, or every token was banned."""
        return math.isnan(self.logprob) or math.isnan(self.sampling_logprob)


class NotFinite(ArithmeticError):
    """A choice whose statistics are not numbers; `is_of_model` where the logits themselves are not."""

    def __init__(self, is_of_model: bool) -> None:
        super().__init__(is_of_model)
        self.is_of_model = is_of_model


def check_finite(choice: Choice) -> None:
    """Raises `NotFinite` for a choice that no database may get."""
    if not math.isfinite(choice.logprob + choice.sampling_logprob + choice.entropy):
        raise NotFinite(is_of_model=not math.isfinite(choice.logprob + choice.entropy))


#: The numbers of a `Choice`, in the order in which a batch sampler writes them, as float64.
COLUMNS = ("token_id", "logprob", "sampling_logprob", "entropy", "rank", "kept")


@dataclass(frozen=True)
class Choices:
    """The choices of several rows, as a batch sampler returns them. Impossible alternatives have a logprob of -inf."""

    columns: NDArray[np.float64]  # [rows, len(COLUMNS)]
    alternative_ids: NDArray[np.int32]  # [rows, k], the most probable tokens
    alternative_logprobs: NDArray[np.float32]  # [rows, k]

    @classmethod
    def stacked(cls, choices: Sequence[Choice]) -> Choices:
        width = max((len(choice.alternatives) for choice in choices), default=0)
        impossible = (-1, -math.inf)
        pairs = [[*choice.alternatives, *[impossible] * (width - len(choice.alternatives))] for choice in choices]
        numbers = np.array(pairs, np.float64).reshape(len(choices), width, 2)
        return cls(
            np.array([[getattr(choice, name) for name in COLUMNS] for choice in choices], np.float64),
            numbers[..., 0].astype(np.int32),
            numbers[..., 1].astype(np.float32),
        )

    def ordered(self) -> Choices:
        """The same choices with each row's alternatives in order: the most probable first, equal ones by id."""
        if self.alternative_ids.shape[1] < 2:
            return self
        order = np.lexsort((self.alternative_ids, -self.alternative_logprobs), axis=-1)
        return Choices(
            self.columns,
            np.take_along_axis(self.alternative_ids, order, 1),
            np.take_along_axis(self.alternative_logprobs, order, 1),
        )

    def of_rows(self, rows: Sequence[int]) -> Choices:
        return Choices(self.columns[rows], self.alternative_ids[rows], self.alternative_logprobs[rows])

    def of_row(self, row: int, num_alternatives: int) -> Choice:
        """The choice of one row, with at most `num_alternatives` of its alternatives, equal ones by id."""
        token_id, logprob, sampling_logprob, entropy, rank, kept = self.columns[row].tolist()
        pairs = zip(self.alternative_ids[row].tolist(), self.alternative_logprobs[row].tolist(), strict=True)
        ordered = order_alternatives(pairs)[:num_alternatives]
        return Choice(int(token_id), logprob, sampling_logprob, entropy, int(rank), int(kept), ordered)


def order_alternatives(pairs: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """(token id, logprob) pairs, the most probable first, equal ones by id; without those that are impossible."""
    return sorted(((i, logprob) for i, logprob in pairs if logprob > -math.inf), key=lambda pair: (-pair[1], pair[0]))
