"""The ends of sequences: an end token, a stop token, a stop string or the length, checked in this order."""

from __future__ import annotations

from models.params import GenerationParams
from models.states import FinishReason
from worker.engine.detokenizer import Detokenizer, TextStream
from worker.engine.scheduling.sequence import Sequence


def eos_ids_of(params: GenerationParams, model_eos_ids: tuple[int, ...]) -> tuple[int, ...]:
    """The end ids of a job: its own, or the model's, or none."""
    if params.ignore_eos:
        return ()
    return model_eos_ids if params.eos_token_ids is None else params.eos_token_ids


def check_stop(sequence: Sequence, eos_ids: tuple[int, ...], detokenizer: Detokenizer | None) -> None:
    """Sets the sequence's `finish_reason` if its newest token ends it."""
    params, token_id = sequence.request.params, sequence.token_ids[-1]
    if token_id in eos_ids:
        sequence.finish_reason = FinishReason.EOS
    elif token_id in params.stop_token_ids:
        sequence.finish_reason = FinishReason.STOP
    elif params.stop and detokenizer is not None and _ends_with_stop_string(sequence, detokenizer):
        sequence.finish_reason = FinishReason.STOP
    elif len(sequence.token_ids) >= sequence.max_new_tokens:
        sequence.finish_reason = FinishReason.LENGTH


def _ends_with_stop_string(sequence: Sequence, detokenizer: Detokenizer) -> bool:
    if sequence.text_stream is None:
        sequence.text_stream = TextStream(detokenizer)
        for token_id in sequence.token_ids[:-1]:
            sequence.text_stream.append(token_id)
    stream = sequence.text_stream
    added = stream.append(sequence.token_ids[-1])
    found = [_find(stream.text, stop, len(added)) for stop in sequence.request.params.stop]
    starts = [start for start in found if start >= 0]
    if not starts or not added:
        return False
    sequence.text_end = min(starts)
    return True


def _find(text: str, stop: str, num_added: int) -> int:
    """The start of a stop string that the newest characters complete, or -1."""
    return text.find(stop, max(0, len(text) - num_added - len(stop) + 1))
