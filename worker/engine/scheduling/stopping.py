"""The ends of sequences: an end token, a stop token, a stop string or the length, checked in this order."""

from __future__ import annotations

from collections.abc import Collection

from models.params import GenerationParams
from models.states import FinishReason
from worker.engine.detokenizer import Detokenizer
from worker.engine.scheduling.sequence import Sequence
from worker.engine.scheduling.stop_search import StopSearch


def eos_ids_of(params: GenerationParams, model_eos_ids: tuple[int, ...]) -> tuple[int, ...]:
    """The end ids of a job: none with `ignore_eos`, else its own, else those stored with it, else the model's."""
    if params.ignore_eos:
        return ()
    if params.eos_token_ids is not None:
        return params.eos_token_ids
    stored = None if params.model_defaults is None else params.model_defaults.eos_token_ids
    return model_eos_ids if stored is None else stored


class WatchedTokens(dict[int, bool]):
    """Whether a sequence may end with a token, whatever comes before it; found when it is first asked for."""

    def __init__(self, end_ids: Collection[int], search: StopSearch | None) -> None:
        super().__init__(dict.fromkeys(end_ids, True))
        self._search = search

    def __missing__(self, token_id: int) -> bool:
        found = self[token_id] = self._search is not None and self._search.may_complete(token_id)
        return found


def check_stop(sequence: Sequence, eos_ids: tuple[int, ...], detokenizer: Detokenizer | None) -> None:
    """Sets the sequence's `finish_reason` if its newest token ends it, and `text_end` where a stop string begins.

    An end or stop token is not part of the text. The last character may complete a stop string only because nothing
    follows it: it is then cut, too.
    """
    params, token_ids = sequence.request.params, sequence.token_ids
    search = stop_search_of(sequence, detokenizer)
    if token_ids[-1] in eos_ids:
        sequence.finish_reason = FinishReason.EOS
    elif token_ids[-1] in params.stop_token_ids:
        sequence.finish_reason = FinishReason.STOP
    elif search is not None and (start := search.extend(token_ids, len(token_ids))) is not None:
        sequence.finish_reason, sequence.text_end = FinishReason.STOP, start
    elif len(token_ids) >= sequence.max_new_tokens:
        sequence.finish_reason = FinishReason.LENGTH
    if search is not None and sequence.finish_reason is not None and sequence.text_end is None:
        sequence.text_end = search.close()
        if sequence.text_end is not None and sequence.finish_reason is FinishReason.LENGTH:
            sequence.finish_reason = FinishReason.STOP


def ends_with_end_token(sequence: Sequence, eos_ids: tuple[int, ...]) -> bool:
    """Whether the last token of a finished sequence is there to end it: its text is not the answer's."""
    last = sequence.token_ids[-1:]
    return any(token_id in eos_ids or token_id in sequence.request.params.stop_token_ids for token_id in last)


def stop_search_of(sequence: Sequence, detokenizer: Detokenizer | None) -> StopSearch | None:
    """The search for the sequence's stop strings in its text before the newest token; None where it has none."""
    if not sequence.request.params.stop or detokenizer is None:
        return None
    if sequence.stop_search is None:
        stream = detokenizer.stream(sequence.request.prompt_ids)
        sequence.stop_search = StopSearch(stream, sequence.request.params.stop)
    sequence.stop_search.extend(sequence.token_ids, len(sequence.token_ids) - 1)
    return sequence.stop_search
