"""The checks at an engine's start: they accept the kernels, and leave no draw to rounding."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from worker.engine.backend import LogitsLayout
from worker.engine.cuda.usable import KINDS, check_fill, check_sampler, checked_logits, steady_seed
from worker.engine.sampling.philox import uniforms

CPU = torch.device("cpu")

#: Kinds that draw from all tokens without penalties.
PLAIN_DRAW = 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_checks_accept_the_kernels(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    with np.errstate(all="ignore"):  # as on a GPU
        check_sampler(LogitsLayout(5003, dtype, CPU))
    check_fill(CPU)


def test_a_seed_that_leaves_a_draw_to_rounding_is_passed_over() -> None:
    """An H200 and Torch drew two tokens for the penalized row of the first: its number is 3e-8 beside their border."""
    layout = LogitsLayout(512, torch.float32, CPU)
    assert steady_seed(layout, checked_logits(layout)) == 1


@pytest.mark.parametrize("vocab", [16, 64, 512, 1000, 5003])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_plain_draw_is_far_from_the_next_token(vocab: int, dtype: torch.dtype) -> None:
    layout = LogitsLayout(vocab, dtype, CPU)
    logits = checked_logits(layout)
    seed = steady_seed(layout, logits)
    weights = np.exp(logits[PLAIN_DRAW].double().numpy() / KINDS[PLAIN_DRAW]["temperature"])
    borders = np.cumsum(weights) / weights.sum()
    number = uniforms([seed + 1 + PLAIN_DRAW], [0], [2])[0]
    assert np.abs(borders - number).min() > 1e-6
