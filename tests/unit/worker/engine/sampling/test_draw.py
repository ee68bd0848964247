"""Draws from one row of weights: their distribution, and the ends of the cumulative sum."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tests.support.distributions import LEVEL, p_value, softmax, some_logits
from worker.engine.sampling.draw import draw_categorical
from worker.engine.sampling.philox import uniforms

NUM_DRAWS = 100_000


def draw_many(draw: Callable[[float], int]) -> list[int]:
    numbers = uniforms([11] * NUM_DRAWS, [0] * NUM_DRAWS, range(NUM_DRAWS))
    return [draw(float(number)) for number in numbers]


def test_the_chi_square_check_rejects_a_wrong_sampler() -> None:
    exact = softmax(some_logits(2)[0])
    weights = exact.astype(np.float32)

    def squared(number: float) -> int:  # its numbers are not uniform
        return draw_categorical(weights, number**1.05).token_id

    def right(number: float) -> int:
        return draw_categorical(weights, number).token_id

    assert p_value(draw_many(right), exact) > LEVEL
    assert p_value(draw_many(squared), exact) < LEVEL


def test_a_draw_of_many_blocks_inverts_the_cumulative_sum() -> None:
    weights = softmax(some_logits(3, vocab=1000)[0]).astype(np.float32)
    cumulative = weights.cumsum(dtype=np.float64) / weights.sum(dtype=np.float64)
    for number in np.linspace(0, 1, 997, endpoint=False).tolist():
        expected = int(np.searchsorted(cumulative, number, side="right"))
        # At a step of the cumulative sum the two ways of adding up may round apart.
        if min(abs(float(cumulative[expected]) - number), abs(float(cumulative[expected - 1]) - number)) > 1e-7:
            assert draw_categorical(weights, number).token_id == expected


def test_a_token_without_probability_is_never_drawn() -> None:
    weights = np.zeros(600, dtype=np.float32)
    weights[300] = 1e-30
    for number in (0.0, 0.5, math.nextafter(1, 0)):
        assert draw_categorical(weights, number).token_id == 300
