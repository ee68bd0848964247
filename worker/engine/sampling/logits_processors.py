"""Logits processors of one row: bias, penalties, minimum length and `top_k`; [1, vocab] in and out.

Transformers' own processors where they exist. Penalties see the whole history of the row; nothing here samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TopKLogitsWarper,
)

from models.params import GenerationParams


def has_history_processors(params: GenerationParams) -> bool:
    """True where `apply_history_processors` would change anything."""
    return bool(
        params.logit_bias
        or params.repetition_penalty != 1.0
        or params.presence_penalty
        or params.frequency_penalty
        or params.min_new_tokens
    )


def apply_history_processors(
    scores: Tensor,
    params: GenerationParams,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    eos_ids: tuple[int, ...],
) -> Tensor:
    """Bias, penalties and the minimum length, in Transformers' order; returns new scores [1, vocab]."""
    history = torch.tensor([[*prompt_ids, *token_ids]], device=scores.device)
    scores = scores.clone()
    if params.logit_bias:
        bias: list[Any] = [[[token_id], value] for token_id, value in params.logit_bias.items()]
        scores = SequenceBiasLogitsProcessor(bias)(history, scores)
    if params.repetition_penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(history, scores)
    if (params.presence_penalty or params.frequency_penalty) and token_ids:
        _subtract_penalties(scores, params, token_ids)
    if params.min_new_tokens and eos_ids:
        processor = MinNewTokensLengthLogitsProcessor(
            len(prompt_ids), params.min_new_tokens, list(eos_ids), device=str(scores.device)
        )
        scores = processor(history, scores)
    return scores


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
