"""Logits to sample from, and whether what was sampled follows the distribution it should."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: A correct sampler fails a check of its distribution once in so many seeds; the seeds are fixed.
LEVEL = 1e-3
VOCAB = 40


def some_logits(seed: int = 0, rows: int = 1, vocab: int = VOCAB) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


def softmax(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    return np.asarray(torch.softmax(logits.double() / temperature, -1).numpy())


def p_value(token_ids: list[int], probabilities: np.ndarray) -> float:
    """The chi-square test of token ids against probabilities [vocab]; rarely expected tokens count as one."""
    counts = np.bincount(token_ids, minlength=len(probabilities)).astype(float)
    expected = probabilities * len(token_ids)
    if counts[expected == 0].any():
        return 0.0
    rare = expected < 10
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] == 0:
        counts, expected = counts[:-1], expected[:-1]
    return chi_square_p_value(counts, expected)


def chi_square_p_value(counts: np.ndarray, expected: np.ndarray) -> float:
    """The probability of counts at least so far from the expected ones, by Pearson's test."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    half_degrees = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half_degrees, torch.tensor(statistic / 2, dtype=torch.float64)))
