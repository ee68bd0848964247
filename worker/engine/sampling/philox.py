"""The random numbers: one uniform per draw from a counter-based generator, so a draw depends on nothing else.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), with the job's
seed as key and (position, sample index) as counter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_NUM_ROUNDS = 10


def philox(counter: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Four 32-bit words per column: counter [4, n] and key [2, n] hold 32-bit words; returns [4, n]."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (second >> _32) ^ c1 ^ k0, second & _LOW, (first >> _32) ^ c3 ^ k1, first & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack((c0, c1, c2, c3))


def uniforms(seeds: Sequence[int], sample_indices: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) with 53 random bits for each (seed, sample index, position)."""
    seed = np.asarray(seeds, dtype=np.uint64)
    zeros = np.zeros_like(seed)
    counter = np.stack((
        np.asarray(positions, dtype=np.uint64), np.asarray(sample_indices, dtype=np.uint64), zeros, zeros
    ))  # fmt: skip
    words = philox(counter, np.stack((seed & _LOW, seed >> _32)))
    bits = ((words[0] >> np.uint64(5)) << np.uint64(26)) | (words[1] >> np.uint64(6))
    return np.asarray(bits * 2.0**-53, dtype=np.float64)
