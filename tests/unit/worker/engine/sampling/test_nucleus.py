"""The nucleus against a brute-force reference: the rule's one sentence, token by token in exact order."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.support.kernels import NEEDS_COMPILER, the_library
from worker.engine.cpu.library import pointer
from worker.engine.sampling.draw import draw_nucleus
from worker.engine.sampling.nucleus import MAX_SORTED, SLACK, Weights, nucleus

TEMPERATURES = (0.001, 0.1, 0.5, 1.0, 2.0, 10.0)

logit = st.one_of(
    st.floats(-30, 30, width=32),
    st.sampled_from([0.0, 1.0, -1.0]),  # ties
    st.just(-math.inf),
)


def weights_of(logits: list[float], temperature: float) -> Weights:
    """Unnormalized probabilities as the sampler makes them, in fp32."""
    scaled = torch.tensor(logits, dtype=torch.float32) / temperature
    return np.asarray((scaled - scaled.max()).exp().numpy())


def kept_by_sampler(weights: Weights, top_p: float) -> tuple[list[int], list[float]]:
    """Ids and weights of the tokens that the sampler keeps, the most probable first."""
    ids, kept_weights, num_kept = nucleus(weights, top_p)
    if ids is None:
        ids = np.flatnonzero(kept_weights)
        kept_weights = kept_weights[ids]
    assert num_kept == len(ids)
    order = np.argsort(-kept_weights, kind="stable")
    return ids[order].tolist(), kept_weights[order].tolist()


def kept_in_c(weights: Weights, top_p: float) -> tuple[list[int], list[float]]:
    """`kept_by_sampler` for `nucleus.c`."""
    library = the_library()
    library.keep_nucleus.restype = ctypes.c_int64
    kept = torch.from_numpy(weights.copy())
    scratch = torch.empty(len(kept) + 16)
    num_kept = library.keep_nucleus(pointer(kept), ctypes.c_int64(len(kept)), ctypes.c_double(top_p), pointer(scratch))
    ids: list[int] = kept.nonzero()[:, 0].tolist()
    assert num_kept == len(ids)
    assert kept[ids].tolist() == weights[ids].tolist()
    return (ordered := sorted(ids, key=lambda token_id: -weights[token_id])), weights[ordered].tolist()


Keep = Callable[[Weights, float], tuple[list[int], list[float]]]
KEEPS = pytest.mark.parametrize("keep", [kept_by_sampler, pytest.param(kept_in_c, marks=NEEDS_COMPILER)])


def brute_force(weights: Weights, top_p: float) -> tuple[list[int], float]:
    """The kept ids by the rule, one token at a time, and the distance of the nearest sum from the limit."""
    values = [float(weight) for weight in weights]
    total = math.fsum(values)
    order = sorted(range(len(values)), key=lambda token_id: (-values[token_id], token_id))
    limit = top_p + SLACK
    kept: list[int] = []
    nearest = math.inf
    for count in range(1, len(order) + 1):
        cumulative = math.fsum(values[token_id] for token_id in order[:count]) / total
        nearest = min(nearest, abs(cumulative - limit))
        if cumulative > limit:
            break
        kept.append(order[count - 1])
    return kept or order[:1], nearest


@KEEPS
@settings(max_examples=1000)
@given(
    logits=st.lists(logit, min_size=1, max_size=60),
    temperature=st.sampled_from(TEMPERATURES),
    percent=st.integers(1, 99),
)
@example(logits=[0.0] * 10, temperature=1.0, percent=30)  # 0.1 + 0.1 + 0.1 does not exceed 0.3
@example(logits=[5.0, 0.0], temperature=1.0, percent=50)  # one token that exceeds it alone
@example(logits=[0.0, -math.inf, 0.0], temperature=0.001, percent=50)
def test_nucleus_keeps_the_set_of_the_rule(keep: Keep, logits: list[float], temperature: float, percent: int) -> None:
    assume(any(value > -math.inf for value in logits))
    weights, top_p = weights_of(logits, temperature), percent / 100
    expected, nearest = brute_force(weights, top_p)
    assume(nearest > 1e-12)  # there the order of float64 additions decides
    token_ids, kept_weights = keep(weights, top_p)
    assert token_ids == expected
    assert kept_weights == [float(weights[token_id]) for token_id in expected]


@KEEPS
@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from(TEMPERATURES),
    percent=st.integers(1, 99),
    num_levels=st.sampled_from([2, 7, 50, 100_000]),
)
def test_nucleus_of_a_large_vocabulary_keeps_the_set_of_the_rule(
    keep: Keep, seed: int, temperature: float, percent: int, num_levels: int
) -> None:
    """More tokens than are sorted at once, with few distinct values, so that ties run through every cutoff."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, num_levels, (2 * MAX_SORTED + 3,), generator=generator) * (12.0 / num_levels)
    weights, top_p = weights_of(logits.tolist(), temperature), percent / 100
    expected, nearest = brute_force_sorted(weights, top_p)
    assume(nearest > 1e-11)
    assert keep(weights, top_p)[0] == expected


def brute_force_sorted(weights: Weights, top_p: float) -> tuple[list[int], float]:
    """`brute_force` with a running sum: the same rule where there are too many tokens to add up each time."""
    values = [float(weight) for weight in weights]
    total, running, nearest, kept = math.fsum(values), 0.0, math.inf, []
    order = sorted(range(len(values)), key=lambda token_id: (-values[token_id], token_id))
    for token_id in order:
        running += values[token_id]
        nearest = min(nearest, abs(running / total - top_p - SLACK))
        if running / total > top_p + SLACK:
            break
        kept.append(token_id)
    return kept or order[:1], nearest


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_top_p_of_one_keeps_every_possible_token(temperature: float) -> None:
    weights = weights_of([3.0, 2.0, -math.inf, 1.0], temperature)
    draws = {draw_nucleus(weights, 1.0, number / 1000).token_id for number in range(1000)}
    assert draws == {token_id for token_id, weight in enumerate(weights.tolist()) if weight >= 0.001 * weights.sum()}
    assert draw_nucleus(weights, 1.0, 0.0).kept == int((weights > 0).sum())


def test_the_draw_inverts_the_renormalized_sum() -> None:
    weights = np.asarray([0.1, 0.4, 0.2, 0.3], dtype=np.float32)
    # Nucleus of 0.7: ids 1 and 3 with 0.4 and 0.3, renormalized to 4/7 and 3/7, in the order of their ids.
    assert draw_nucleus(weights, 0.7, 0.57).token_id == 1
    drawn = draw_nucleus(weights, 0.7, 0.58)
    assert (drawn.token_id, drawn.kept) == (3, 2)
    assert drawn.logprob == pytest.approx(math.log(3 / 7))
