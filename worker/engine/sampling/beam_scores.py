"""Scores the next tokens of a request's beams. The search itself knows no logits, and this module no search."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from models.params import GenerationParams
from worker.engine.choices import Choice, NotFinite
from worker.engine.model.step_batch import MIN_ROWS
from worker.engine.sampling.logits_processors import apply_history_processors, has_history_processors
from worker.engine.sampling.row_sampler import entropies_of, top_alternatives
from worker.engine.scheduling.beam_state import Candidate
from worker.engine.scheduling.sequence import Sequence


@dataclass(frozen=True)
class StepScores:
    """The `BeamScores` of one step, on the host."""

    params: GenerationParams
    logprobs: Tensor  # as the search scores them [beams, vocab]
    raw: Tensor  # as the model gives them [beams, vocab]
    entropies: list[float]  # of the beams; empty where there is no trace

    def choice(self, candidate: Candidate) -> Choice:
        """Entropy, rank and alternatives are only for a trace, because each costs a pass over a row."""
        params, raw = self.params, self.raw[candidate.parent]
        if params.trace == "none":
            logprob = float(raw[candidate.token_id]) if has_history_processors(params) else candidate.logprob
            return Choice(candidate.token_id, logprob, candidate.logprob, 0.0, 0, params.num_beams, [])
        raw_logprob = raw[candidate.token_id]
        return Choice(
            token_id=candidate.token_id,
            logprob=float(raw_logprob),
            sampling_logprob=candidate.logprob,
            entropy=self.entropies[candidate.parent],
            rank=int((raw > raw_logprob).sum()) + 1,
            kept=params.num_beams,
            alternatives=top_alternatives(raw, params.top_logprobs),
            beam=candidate.parent,
        )


def score_beams(beams: SequenceOf[Sequence], logits: Tensor, eos_ids: tuple[int, ...]) -> StepScores:
    """Log-probabilities fp32 from logits [num_beams, vocab]. Raises `NotFinite`.

    As in Transformers, processors change a beam's log-probabilities, but the logits where there is one beam
    only (`generate` is greedy then): a repetition penalty makes a difference between the two.
    """
    rows = logits.float()
    if rows.shape[0] < MIN_ROWS:
        rows = rows.expand(MIN_ROWS, -1)
    raw = torch.log_softmax(rows, dim=-1)
    if bool(raw[:, 0].isnan().any()):  # one NaN or inf makes the whole row NaN
        raise NotFinite(is_of_model=True)
    params = beams[0].request.params
    entropies = entropies_of(raw) if params.trace != "none" else []
    raw = raw[: logits.shape[0]]
    if not has_history_processors(params):
        on_host = raw.cpu()
        return StepScores(params, on_host, on_host, entropies)
    scored = _processed(beams, rows[:1] if params.num_beams == 1 else raw, eos_ids)
    if params.num_beams == 1:
        scored = torch.log_softmax(scored, dim=-1)
    return StepScores(params, scored.cpu(), raw.cpu(), entropies)


def _processed(beams: SequenceOf[Sequence], scores: Tensor, eos_ids: tuple[int, ...]) -> Tensor:
    """Scores [beams, vocab] after bias, penalties and bans."""
    return torch.cat(
        [
            apply_history_processors(
                scores[index : index + 1],
                beam.request.params,
                beam.request.prompt_ids,
                beam.token_ids,
                eos_ids,
                beam.max_new_tokens,
            )
            for index, beam in enumerate(beams)
        ]
    )
