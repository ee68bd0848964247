"""The beams of a request: each step some go on by a token, and some become finished hypotheses. No tensors."""

from __future__ import annotations

from models.states import FinishReason
from worker.engine.detokenizer import Detokenizer
from worker.engine.scheduling.beam_state import BeamScores, BeamSearchState, Candidate
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.stopping import check_stop, stop_search_of


def advance_beams(
    group: SequenceGroup,
    search: BeamSearchState[Sequence],
    scores: BeamScores,
    eos_ids: tuple[int, ...],
    detokenizer: Detokenizer | None,
) -> list[tuple[Sequence, Sequence]]:
    """One step of the search; (parent, beam) for each beam that goes on."""

    def extended(candidate: Candidate) -> Sequence:
        parent = group.sequences[candidate.parent]
        child = parent.fork(parent.index)
        child.append(scores.choice(candidate))
        return child

    def finish_reason(candidate: Candidate) -> FinishReason | None:
        return _finish_reason(group.sequences[candidate.parent], candidate, eos_ids, detokenizer)

    def on_finish(candidate: Candidate, reason: FinishReason) -> Sequence:
        finished = extended(candidate)
        check_stop(finished, eos_ids, detokenizer)
        finished.finish_reason = reason
        return finished

    length = len(group.sequences[0].token_ids) + 1
    candidates = search.advance(scores.logprobs, length, finish_reason, on_finish)
    return [(group.sequences[candidate.parent], extended(candidate)) for candidate in candidates]


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
