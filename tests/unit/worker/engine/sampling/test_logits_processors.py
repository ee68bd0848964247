"""Logits processors, value by value. Histories differ per row, as they do in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TopKLogitsWarper,
)

from models.params import GenerationParams
from tests.support.distributions import VOCAB, some_logits
from worker.engine.sampling.logits_processors import apply_history_processors, apply_top_k

PROMPT, ANSWER = (3, 5, 5, 9), (5, 7, 7, 7, 30)
HISTORY = torch.LongTensor([[*PROMPT, *ANSWER]])


def processed(logits: Tensor, eos_ids: tuple[int, ...] = (), **params: Any) -> Tensor:
    return apply_history_processors(logits, GenerationParams(**params), PROMPT, ANSWER, eos_ids)


def test_repetition_penalty_is_transformers_own() -> None:
    logits = some_logits(9)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(HISTORY, logits.clone())
    assert torch.equal(processed(logits, repetition_penalty=1.3), expected)
    # By hand: divided where positive, multiplied where negative, over prompt and answer.
    for token_id in range(VOCAB):
        value = float(logits[0, token_id])
        changed = (value / 1.3 if value > 0 else value * 1.3) if token_id in (*PROMPT, *ANSWER) else value
        assert float(expected[0, token_id]) == pytest.approx(changed, rel=1e-6)


def test_presence_and_frequency_count_the_answer_only() -> None:
    logits = some_logits(10)
    changed = processed(logits, presence_penalty=0.5, frequency_penalty=0.25)
    for token_id in range(VOCAB):
        count = ANSWER.count(token_id)
        expected = float(logits[0, token_id]) - (0.5 + 0.25 * count if count else 0.0)
        assert float(changed[0, token_id]) == pytest.approx(expected, abs=1e-6)


def test_logit_bias_is_transformers_own() -> None:
    logits = some_logits(11)
    expected = SequenceBiasLogitsProcessor([[[3], 2.5], [[7], -100.0]])(HISTORY, logits.clone())
    assert torch.equal(processed(logits, logit_bias={3: 2.5, 7: -100.0}), expected)


def test_no_end_token_before_the_minimum_length() -> None:
    logits = some_logits(12)
    early = processed(logits, eos_ids=(4, 6), min_new_tokens=6)
    assert torch.isneginf(early[0, [4, 6]]).all()
    rest = [token_id for token_id in range(VOCAB) if token_id not in (4, 6)]
    assert torch.equal(early[0, rest], logits[0, rest])
    assert torch.equal(processed(logits, eos_ids=(4, 6), min_new_tokens=5), logits)


@pytest.mark.parametrize("top_k", [1, 5, VOCAB, VOCAB + 10])
def test_top_k_is_transformers_own(top_k: int) -> None:
    logits = some_logits(13)
    assert torch.equal(apply_top_k(logits, top_k), TopKLogitsWarper(top_k)(HISTORY, logits))


def test_processors_leave_the_models_logits_as_they_were() -> None:
    logits = some_logits(15)
    before = logits.clone()
    processed(logits, eos_ids=(1,), repetition_penalty=1.5, presence_penalty=1.0, logit_bias={1: 1.0}, min_new_tokens=9)
    assert torch.equal(logits, before)
