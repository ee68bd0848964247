"""Logits processors of one row: bias, penalties, bans, forced tokens and `top_k`; [1, vocab] in and out.

Transformers' own processors where they exist. Penalties see the whole history of the row; nothing here samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TopKLogitsWarper,
)

from models.model_defaults import ModelDefaults
from models.params import GenerationParams
from worker.engine.sampling_row import min_new_tokens_of, repetition_penalty_of


def has_history_processors(params: GenerationParams) -> bool:
    """True where `apply_history_processors` may change anything."""
    return bool(
        params.logit_bias
        or params.repetition_penalty != 1.0
        or params.presence_penalty
        or params.frequency_penalty
        or params.min_new_tokens
        or (params.model_defaults and params.model_defaults.changes_logits)
    )


def apply_history_processors(
    scores: Tensor,
    params: GenerationParams,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    eos_ids: tuple[int, ...],
    max_new_tokens: int | None = None,
) -> Tensor:
    """Bias, penalties, bans and forced tokens, in Transformers' order; returns new scores [1, vocab]."""
    history: Any = torch.tensor([[*prompt_ids, *token_ids]], device=scores.device)
    scores = scores.clone()
    defaults = params.model_defaults or ModelDefaults()
    for processor in _biases(params, defaults):
        scores = processor(history, scores)
    if (penalty := repetition_penalty_of(params)) != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(penalty)(history, scores)
    if (params.presence_penalty or params.frequency_penalty) and token_ids:
        _subtract_penalties(scores, params, token_ids)
    most = params.max_new_tokens if max_new_tokens is None else max_new_tokens
    minimum = min_new_tokens_of(params, len(prompt_ids))
    for processor in _bans(defaults, len(prompt_ids), most, minimum, eos_ids):
        scores = processor(history, scores)
    return scores


def _biases(params: GenerationParams, defaults: ModelDefaults) -> Iterator[LogitsProcessor]:
    if params.logit_bias:
        yield SequenceBiasLogitsProcessor([[[token_id], value] for token_id, value in params.logit_bias.items()])
    if defaults.sequence_bias:
        yield SequenceBiasLogitsProcessor([[list(token_ids), value] for token_ids, value in defaults.sequence_bias])


def _bans(
    defaults: ModelDefaults, num_prompt_ids: int, max_new_tokens: int, min_new_tokens: int, eos_ids: tuple[int, ...]
) -> Iterator[LogitsProcessor]:
    """The processors after the penalties."""
    ends = list(eos_ids)
    if defaults.no_repeat_ngram_size is not None:
        yield NoRepeatNGramLogitsProcessor(defaults.no_repeat_ngram_size)
    words = [list(word) for word in defaults.bad_words_ids or () if word not in [(eos_id,) for eos_id in eos_ids]]
    if words:
        yield NoBadWordsLogitsProcessor(words)
    if min_new_tokens and ends:
        yield MinNewTokensLengthLogitsProcessor(num_prompt_ids, min_new_tokens, ends)
    if defaults.forced_bos_token_id is not None:
        yield ForcedBOSTokenLogitsProcessor(defaults.forced_bos_token_id)
    if defaults.forced_eos_token_id is not None:
        yield ForcedEOSTokenLogitsProcessor(num_prompt_ids + max_new_tokens, list(defaults.forced_eos_token_id))
    if defaults.exponential_decay_length_penalty is not None and ends:
        yield ExponentialDecayLengthPenalty(defaults.exponential_decay_length_penalty, ends, num_prompt_ids)
    if defaults.suppress_tokens:
        yield SuppressTokensLogitsProcessor(list(defaults.suppress_tokens))
    if defaults.begin_suppress_tokens:
        is_forced = num_prompt_ids == 1 and defaults.forced_bos_token_id is not None
        yield SuppressTokensAtBeginLogitsProcessor(list(defaults.begin_suppress_tokens), num_prompt_ids + is_forced)


def _subtract_penalties(scores: Tensor, params: GenerationParams, token_ids: Sequence[int]) -> None:
    """OpenAI's rule: presence once, frequency per occurrence, over generated tokens only. In place."""
    counts = Counter(token_ids)
    ids = torch.tensor(list(counts), device=scores.device)
    occurrences = torch.tensor(list(counts.values()), dtype=scores.dtype, device=scores.device)
    scores[0, ids] -= params.presence_penalty + params.frequency_penalty * occurrences


def apply_top_k(scores: Tensor, top_k: int) -> Tensor:
    """Scores [1, vocab] with -inf for those below the k-th largest."""
    history: Any = torch.empty((1, 0), dtype=torch.long, device=scores.device)
    kept: Tensor = TopKLogitsWarper(top_k)(history, scores)
    return kept
