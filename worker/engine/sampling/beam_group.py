"""A beam request in the running batch: joins the search's decisions to sequences. Knows no KV blocks."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from models.params import GenerationParams
from models.states import FinishReason
from worker.engine.choices import Choice, NotFinite
from worker.engine.detokenizer import Detokenizer
from worker.engine.model.step_batch import MIN_ROWS
from worker.engine.sampling.beam_search import BeamSearch, Candidate
from worker.engine.sampling.logits_processors import apply_history_processors, has_history_processors
from worker.engine.sampling.row_sampler import entropies_of, top_alternatives
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.stopping import check_stop, stop_search_of


@dataclass(frozen=True)
class StepColumns:
    """Of a step: raw log-probabilities [beams, vocab], and entropies [beams], empty where there is no trace."""

    raw: Tensor
    entropies: list[float]


def start_beams(group: SequenceGroup, eos_ids: tuple[int, ...]) -> None:
    params = group.request.params
    group.beam_search = BeamSearch(params.num_beams, params.length_penalty, len(eos_ids))


def advance_beams(
    group: SequenceGroup, logits: Tensor, eos_ids: tuple[int, ...], detokenizer: Detokenizer | None
) -> list[tuple[Sequence, Sequence]]:
    """One step of the search on logits [num_beams, vocab]; (parent, beam) for each beam that continues."""
    columns, scored = _score(group, logits, eos_ids)

    def extended(candidate: Candidate) -> Sequence:
        return _extend(group.sequences[candidate.parent], candidate, columns)

    def finish_reason(candidate: Candidate) -> FinishReason | None:
        return _finish_reason(group.sequences[candidate.parent], candidate, eos_ids, detokenizer)

    def on_finish(candidate: Candidate, reason: FinishReason) -> Sequence:
        finished = extended(candidate)
        check_stop(finished, eos_ids, detokenizer)
        finished.finish_reason = reason
        return finished

    length = len(group.sequences[0].token_ids) + 1
    chosen = _search_of(group).advance(scored, length, finish_reason, on_finish)
    return [(group.sequences[candidate.parent], extended(candidate)) for candidate in chosen]


def _search_of(group: SequenceGroup) -> BeamSearch[Sequence]:
    assert isinstance(group.beam_search, BeamSearch)
    return group.beam_search


def _score(group: SequenceGroup, logits: Tensor, eos_ids: tuple[int, ...]) -> tuple[StepColumns, Tensor]:
    """Log-probabilities as the model gives them, and as the search scores them, both [num_beams, vocab] fp32.

    As in Transformers, processors change a beam's log-probabilities, but the logits where there is one beam
    only (`generate` is greedy then): a repetition penalty makes a difference between the two.
    """
    rows = logits.float()
    if rows.shape[0] < MIN_ROWS:
        rows = rows.expand(MIN_ROWS, -1)
    raw = torch.log_softmax(rows, dim=-1)
    if bool(raw[:, 0].isnan().any()):  # one NaN or inf makes the whole row NaN
        raise NotFinite(is_of_model=True)
    params = group.request.params
    entropies = entropies_of(raw) if params.trace != "none" else []
    raw = raw[: logits.shape[0]]
    scored = raw
    if has_history_processors(params):
        before = rows[:1] if params.num_beams == 1 else raw
        scored = torch.cat(
            [
                apply_history_processors(
                    before[index : index + 1],
                    params,
                    group.request.prompt_ids,
                    sequence.token_ids,
                    eos_ids,
                    sequence.max_new_tokens,
                )
                for index, sequence in enumerate(group.sequences)
            ]
        )
        if params.num_beams == 1:
            scored = torch.log_softmax(scored, dim=-1)
    return StepColumns(raw, entropies), scored.cpu()


def _finish_reason(
    parent: Sequence, candidate: Candidate, eos_ids: tuple[int, ...], detokenizer: Detokenizer | None
) -> FinishReason | None:
    params = parent.request.params
    if candidate.token_id in eos_ids:
        return FinishReason.EOS
    if not params.stop and candidate.token_id not in params.stop_token_ids:
        return FinishReason.LENGTH if len(parent.token_ids) + 1 >= parent.max_new_tokens else None
    stop_search_of(parent, detokenizer)  # read once, for all candidates that go on from here
    trial = parent.fork(parent.index)
    trial.token_ids.append(candidate.token_id)
    check_stop(trial, eos_ids, detokenizer)
    return trial.finish_reason


def _extend(parent: Sequence, candidate: Candidate, columns: StepColumns) -> Sequence:
    """The parent with one token more, and that token's trace."""
    child = parent.fork(parent.index)
    child.append(_choice(candidate, parent.request.params, columns))
    return child


def _choice(candidate: Candidate, params: GenerationParams, columns: StepColumns) -> Choice:
    """The candidate's token; entropy, rank and alternatives only for a trace, because each costs a pass over a row."""
    raw = columns.raw[candidate.parent]
    if params.trace == "none":
        logprob = float(raw[candidate.token_id]) if has_history_processors(params) else candidate.logprob
        return Choice(candidate.token_id, logprob, candidate.logprob, 0.0, 0, params.num_beams, [])
    raw_logprob = raw[candidate.token_id]
    return Choice(
        token_id=candidate.token_id,
        logprob=float(raw_logprob),
        sampling_logprob=candidate.logprob,
        entropy=columns.entropies[candidate.parent],
        rank=int((raw > raw_logprob).sum()) + 1,
        kept=params.num_beams,
        alternatives=top_alternatives(raw, params.top_logprobs),
        beam=candidate.parent,
    )


def beam_results(group: SequenceGroup) -> SequenceOf[tuple[float, Sequence]]:
    """Score and sequence of every finished hypothesis, the best first."""
    return [(each.score, each.hypothesis) for each in _search_of(group).best()]
