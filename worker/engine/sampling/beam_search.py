"""Early-stopped beam search, token for token what Transformers' `generate(early_stopping=True)` returns.

One `BeamSearch` holds the state of one request. `advance` takes the running beams' scores of a step and says
which beams go on, from which parent and with which token. Knows nothing of the KV cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.states import FinishReason

#: Marks a hypothesis that does not exist, as Transformers does; far below any real score.
NOTHING = -1.0e9


@dataclass(frozen=True)
class Candidate:
    """A continuation: beam `parent` followed by `token_id`."""

    parent: int
    token_id: int
    logprob: float  # of this token, as scored
    total: float  # sum over the hypothesis


@dataclass(frozen=True)
class FinishedBeam:
    """A hypothesis in the finished set. `origin` is what `on_finish` returned for it."""

    score: float
    origin: object


@dataclass
class BeamSearch:
    """State over the steps. Scores are float32, as Transformers computes them, so that both order alike."""

    num_beams: int
    length_penalty: float
    num_eos: int
    running_totals: Tensor = field(init=False)  # [num_beams]
    finished_scores: Tensor = field(init=False)  # [num_beams], the best first
    finished: list[FinishedBeam | None] = field(init=False)
    is_done: bool = False
    _can_improve: bool = True

    def __post_init__(self) -> None:
        self.running_totals = torch.full((self.num_beams,), NOTHING)
        self.running_totals[0] = 0.0  # before the first token all beams are the same one
        self.finished_scores = torch.full((self.num_beams,), NOTHING)
        self.finished = [None] * self.num_beams

    def advance(
        self,
        logprobs: Tensor,
        length: int,
        finish_reason: Callable[[Candidate], FinishReason | None],
        on_finish: Callable[[Candidate, FinishReason], object],
    ) -> list[Candidate]:
        """Takes logprobs [num_beams, vocab] of the next token; `length` is the generated length with it.

        Returns the beams that go on, in order, or an empty list when the search is done.
        """
        totals, candidates = self._best_candidates(logprobs)
        reasons = [finish_reason(candidate) for candidate in candidates]
        hits = torch.tensor([reason is not None for reason in reasons])
        continuing, order = (totals + hits.float() * NOTHING).topk(self.num_beams)
        self._finish(totals, candidates, reasons, length, on_finish)
        self.running_totals = continuing
        best_possible = float(continuing[0] / length**self.length_penalty)
        is_full = all(beam is not None for beam in self.finished)
        worst = float(self.finished_scores.min()) if is_full else NOTHING
        self._can_improve &= best_possible > worst
        self.is_done = is_full or not self._can_improve or bool(hits.all())
        return [] if self.is_done else [candidates[index] for index in order.tolist()]

    def best(self) -> list[FinishedBeam]:
        """The finished hypotheses, the best first."""
        return [beam for beam in self.finished if beam is not None]

    def _best_candidates(self, logprobs: Tensor) -> tuple[Tensor, list[Candidate]]:
        """Enough of them that `num_beams` go on even if every beam's best tokens all end it."""
        vocab = logprobs.shape[1]
        num_candidates = max(2, 1 + self.num_eos) * self.num_beams
        totals, indices = (logprobs + self.running_totals[:, None]).view(-1).topk(num_candidates)
        parents, token_ids = indices // vocab, indices % vocab
        picked = logprobs[parents, token_ids]
        columns = (parents.tolist(), token_ids.tolist(), picked.tolist(), totals.tolist())
        return totals, [Candidate(*values) for values in zip(*columns, strict=True)]

    def _finish(
        self,
        totals: Tensor,
        candidates: list[Candidate],
        reasons: list[FinishReason | None],
        length: int,
        on_finish: Callable[[Candidate, FinishReason], object],
    ) -> None:
        """Merges hypotheses that just ended into the finished set; only the best `num_beams` candidates may enter."""
        is_closed = all(beam is not None for beam in self.finished) or not self._can_improve
        scores = totals / length**self.length_penalty
        may_enter = torch.tensor(
            [reason is not None and index < self.num_beams and not is_closed for index, reason in enumerate(reasons)]
        )
        scores = scores + (~may_enter).float() * NOTHING
        merged, order = torch.cat([self.finished_scores, scores]).topk(self.num_beams)
        beams: list[FinishedBeam | None] = []
        for score, index in zip(merged.tolist(), order.tolist(), strict=True):
            place = index - self.num_beams
            if place < 0:
                beams.append(self.finished[index])
            elif may_enter[place]:
                reason = reasons[place]
                assert reason is not None
                beams.append(FinishedBeam(score, on_finish(candidates[place], reason)))
            else:
                beams.append(None)
        self.finished_scores, self.finished = merged, beams
