"""A beam search as scheduling knows one: plain candidates, and two protocols whose tensors are the sampler's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from models.states import FinishReason
from worker.engine.choices import Choice

H = TypeVar("H")


@dataclass(frozen=True)
class Candidate:
    """A continuation: the running beam `parent` followed by `token_id`."""

    parent: int
    token_id: int
    logprob: float  # of this token, after the processors
    cumulative_logprob: float  # sum over the generated tokens, this one included


@dataclass(frozen=True)
class FinishedHypothesis(Generic[H]):
    """One of the best `num_beams` hypotheses so far; `hypothesis` is what `on_finish` returned for it."""

    score: float  # cumulative logprob / length ** length_penalty
    hypothesis: H


#: Why a candidate ends its hypothesis, or None where it goes on.
FinishReasonOf = Callable[[Candidate], FinishReason | None]

#: Called for each candidate that enters the finished hypotheses.
OnFinish = Callable[[Candidate, FinishReason], H]


class BeamSearchState(Protocol[H]):
    """The scores of a search, which decide the beams that go on and the hypotheses that are kept."""

    @property
    def is_done(self) -> bool:
        """Whether no running beam can improve the result."""

    def advance(
        self, logprobs: Any, length: int, finish_reason_of: FinishReasonOf, on_finish: OnFinish[H]
    ) -> list[Candidate]:
        """Takes the next token's `BeamScores.logprobs`; returns the next running beams, the best first."""

    def best(self) -> list[FinishedHypothesis[H]]:
        """The finished hypotheses, the best first."""


class BeamScores(Protocol):
    """The log-probabilities of the next tokens of a request's beams."""

    @property
    def logprobs(self) -> Any:
        """The log-probabilities [beams, vocab] that the search scores."""

    def choice(self, candidate: Candidate) -> Choice:
        """The candidate's token, and its trace."""
