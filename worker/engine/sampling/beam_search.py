"""Beam search that returns, token for token, what Transformers' `generate(early_stopping=True)` returns.

Each step is that of `GenerationMixin._beam_search` in Transformers. A `BeamSearch` holds the scores of one request's
running beams and its finished hypotheses. It knows neither logits processors nor the KV cache: the caller keeps a
beam's tokens and blocks, and says through `on_finish` what to remember of a hypothesis that ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic

import torch
from torch import Tensor

from models.states import FinishReason
from worker.engine.scheduling.beam_state import Candidate, FinishedHypothesis, FinishReasonOf, H, OnFinish

#: The score of a missing hypothesis, and what is added to scores that must not win; Transformers' number.
MASKED_SCORE = -1.0e9


@dataclass
class BeamSearch(Generic[H]):
    """The state of one search. Scores are float32, as Transformers computes them, so that both rank alike."""

    num_beams: int
    length_penalty: float
    num_eos_ids: int
    running_scores: Tensor = field(init=False)  # [num_beams], cumulative logprobs, the best first
    finished_scores: Tensor = field(init=False)  # [num_beams], the best first
    finished: list[FinishedHypothesis[H] | None] = field(init=False)  # of `finished_scores`; None is missing
    is_done: bool = False
    _can_improve: bool = True  # a running beam may still beat the worst finished hypothesis

    def __post_init__(self) -> None:
        self.running_scores = torch.full((self.num_beams,), MASKED_SCORE)
        self.running_scores[0] = 0.0  # before the first token all beams are the same one
        self.finished_scores = torch.full((self.num_beams,), MASKED_SCORE)
        self.finished = [None] * self.num_beams

    def advance(
        self, logprobs: Tensor, length: int, finish_reason_of: FinishReasonOf, on_finish: OnFinish[H]
    ) -> list[Candidate]:
        """Takes the next token's logprobs [num_beams, vocab]; `length` counts the generated tokens with it.

        Returns the next running beams, the best first, or an empty list when the search is done.
        """
        scores, candidates = self._top_candidates(logprobs)
        reasons = [finish_reason_of(candidate) for candidate in candidates]
        has_finished = torch.tensor([reason is not None for reason in reasons])
        self.running_scores, order = (scores + has_finished.float() * MASKED_SCORE).topk(self.num_beams)
        self._update_finished(scores / length**self.length_penalty, candidates, reasons, on_finish)
        self._can_improve &= self._may_improve(length)
        self.is_done = self._is_full or not self._can_improve or bool(has_finished.all())
        return [] if self.is_done else [candidates[index] for index in order.tolist()]

    def best(self) -> list[FinishedHypothesis[H]]:
        """The finished hypotheses, the best first."""
        return [each for each in self.finished if each is not None]

    @property
    def _is_full(self) -> bool:
        return all(each is not None for each in self.finished)

    def _may_improve(self, length: int) -> bool:
        """Transformers' heuristic: whether the best running beam, ended now, would beat the worst finished one."""
        best_running = float(self.running_scores[0] / length**self.length_penalty)
        worst_finished = float(self.finished_scores.min()) if self._is_full else MASKED_SCORE
        return best_running > worst_finished

    def _top_candidates(self, logprobs: Tensor) -> tuple[Tensor, list[Candidate]]:
        """The best candidates and their cumulative logprobs [candidates].

        They are so many that `num_beams` of them go on even if each beam's best ones are all end tokens.
        """
        vocab = logprobs.shape[1]
        num_candidates = max(2, 1 + self.num_eos_ids) * self.num_beams
        scores, indices = (logprobs + self.running_scores[:, None]).view(-1).topk(num_candidates)
        parents, token_ids = indices // vocab, indices % vocab
        columns = (parents, token_ids, logprobs[parents, token_ids], scores)
        return scores, [Candidate(*values) for values in zip(*(each.tolist() for each in columns), strict=True)]

    def _update_finished(
        self,
        scores: Tensor,
        candidates: list[Candidate],
        reasons: list[FinishReason | None],
        on_finish: OnFinish[H],
    ) -> None:
        """Merges the candidates that ended, of `scores` [candidates], into the finished hypotheses.

        Only the best `num_beams` candidates may enter, and only while the search can improve.
        """
        is_open = self._can_improve and not self._is_full
        may_enter = [is_open and index < self.num_beams and reason is not None for index, reason in enumerate(reasons)]
        scores = scores + (~torch.tensor(may_enter)).float() * MASKED_SCORE
        self.finished_scores, order = torch.cat([self.finished_scores, scores]).topk(self.num_beams)
        merged: list[FinishedHypothesis[H] | None] = []
        for score, index in zip(self.finished_scores.tolist(), order.tolist(), strict=True):
            new = index - self.num_beams
            if new < 0:
                merged.append(self.finished[index])
            elif may_enter[new] and (reason := reasons[new]) is not None:
                merged.append(FinishedHypothesis(score, on_finish(candidates[new], reason)))
            else:
                merged.append(None)
        self.finished = merged
