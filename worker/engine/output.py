"""The output of a finished request: texts, traces, scores and times of its sequences.

Knows neither tensors nor KV blocks; called once per request.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from math import isfinite
from typing import Any

import numpy as np

from models.chat import prompt_hash
from worker.engine.detokenizer import Detokenizer
from worker.engine.request import Completion, EngineError, Hypothesis, InvalidRequest, Request, RequestOutput, Trace
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.stopping import ends_with_end_token
from worker.engine.scheduling.trace_buffer import TraceBuffer
from worker.engine.text.token_texts import REPLACEMENT


def failed_output(request: Request, error: EngineError) -> RequestOutput:
    return RequestOutput(request.id, len(request.prompt_ids), error=error)


def finished_output(group: SequenceGroup, eos_ids: tuple[int, ...], detokenizer: Detokenizer | None) -> RequestOutput:
    """The completions that the request asked for, once its last sequence has ended."""
    hypotheses: tuple[Hypothesis, ...] = ()
    if group.is_beam:
        assert group.beam_search is not None
        beams = [
            _completion(each.hypothesis, index, each.score, eos_ids, detokenizer)
            for index, each in enumerate(group.beam_search.best())
        ]
        completions = beams[: group.request.params.num_return]
        hypotheses = tuple(map(_hypothesis, beams))
    else:
        completions = [
            _completion(sequence, sequence.index, None, eos_ids, detokenizer)
            for sequence in [*group.ended, *group.sequences]
        ]
    assert group.admitted is not None and group.prefilled is not None and group.retired is not None
    return RequestOutput(
        group.request.id,
        len(group.request.prompt_ids),
        tuple(completions),
        hypotheses,
        prompt_hash=prompt_hash(group.request.prompt_ids),
        prompt_text=group.request.prompt_text,
        waiting_seconds=group.admitted - group.arrived,
        prefill_seconds=group.prefilled - group.admitted,
        decode_seconds=group.retired - group.prefilled,
    )


def check_output(output: RequestOutput) -> None:
    """Raises for numbers and texts that no database may get."""
    scores = [each.score for each in output.hypotheses] + [each.cumulative_logprob for each in output.completions]
    if not output.completions or not all(map(isfinite, scores)):
        raise InvalidRequest("the scores of its beams are beyond all numbers; correct length_penalty")
    for completion in output.completions:
        completion.text.encode()
        "".join(completion.trace.tokens if completion.trace is not None else ()).encode()


def _hypothesis(beam: Completion) -> Hypothesis:
    """The summary of a finished beam; by its tokens a reader finds where it parted from the others."""
    tokens = None if beam.trace is None else beam.trace.tokens
    return Hypothesis(beam.text, beam.score or 0.0, beam.finish_reason, len(beam.token_ids), beam.token_ids, tokens)


def _completion(
    sequence: Sequence, index: int, score: float | None, eos_ids: tuple[int, ...], detokenizer: Detokenizer | None
) -> Completion:
    assert sequence.finish_reason is not None
    wants_trace = sequence.request.params.trace != "none"
    num_answer = len(sequence.token_ids) - ends_with_end_token(sequence, eos_ids)
    answer_ids, end_ids = sequence.token_ids[:num_answer], sequence.token_ids[num_answer:]
    if detokenizer is None:
        text, pieces = "", [""] * len(sequence.token_ids)
    elif wants_trace:
        pieces = detokenizer.pieces(answer_ids, sequence.request.prompt_ids)
        text = "".join(pieces)
        pieces += [detokenizer.token_text(token_id) for token_id in end_ids]
    else:
        text, pieces = detokenizer.text(answer_ids, sequence.request.prompt_ids), []
    return Completion(
        sample_index=index,
        token_ids=tuple(sequence.token_ids),
        text=text[: sequence.text_end],
        finish_reason=sequence.finish_reason,
        cumulative_logprob=sequence.cumulative_logprob,
        score=score,
        trace=_trace(sequence, pieces, detokenizer) if wants_trace else None,
    )


def _trace(sequence: Sequence, pieces: list[str], detokenizer: Detokenizer | None) -> Trace:
    """The sequence's choices as columns, with the text of each token."""
    trace = sequence.trace
    assert trace is not None
    return Trace(
        tokens=pieces,
        token_bytes=_token_bytes(sequence.token_ids, pieces, detokenizer),
        logprobs=trace.column("logprob").tolist(),
        sampling_logprobs=trace.column("sampling_logprob").tolist(),
        entropies=trace.column("entropy").tolist(),
        ranks=trace.column("rank").astype(np.int64).tolist(),
        kept=trace.column("kept").astype(np.int64).tolist(),
        top_logprobs=_top_logprobs(trace, detokenizer) if trace.num_alternatives else None,
        beams=trace.beams or None,
    )


def _token_bytes(
    token_ids: SequenceOf[int], pieces: SequenceOf[str], detokenizer: Detokenizer | None
) -> list[str | None] | None:
    """The bytes of tokens, in hex, that are parts of characters; None for one whose text has them all.

    A text with a NUL does not: databases have none.
    """
    if detokenizer is None:
        return None
    columns = [
        (detokenizer.token_bytes(token_id), piece.encode()) for token_id, piece in zip(token_ids, pieces, strict=True)
    ]
    found = [
        (data or text).hex() if b"\0" in text or (data is not None and data != text) else None for data, text in columns
    ]
    return found if any(found) else None


def _top_logprobs(trace: TraceBuffer, detokenizer: Detokenizer | None) -> list[list[dict[str, Any]]]:
    """The alternatives of each token, with their texts."""
    return [
        [
            {"token_id": token_id, **_alternative_text(token_id, detokenizer), "logprob": logprob}
            for token_id, logprob in alternatives
        ]
        for alternatives in trace.alternatives()
    ]


def _alternative_text(token_id: int, detokenizer: Detokenizer | None) -> dict[str, str]:
    """The text of an alternative, and its bytes where the text does not tell them."""
    if detokenizer is None:
        return {"token": ""}
    text, data = detokenizer.token_text(token_id), detokenizer.token_bytes(token_id)
    has_own_bytes = data is not None and (REPLACEMENT in text or data != text.encode())
    return {"token": text, "bytes": data.hex()} if has_own_bytes and data is not None else {"token": text}
