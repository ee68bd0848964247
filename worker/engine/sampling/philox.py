"""The uniform numbers of the draws, from a counter-based generator: a draw depends on its key and counter alone.

Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011), with the
request's seed as key and (position, sample index) as counter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW_WORD = np.uint64(0xFFFFFFFF)
_WORD_BITS = np.uint64(32)
_NUM_ROUNDS = 10


def philox(counter: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Four random 32-bit words [4, n] for each of n counters [4, n] and keys [2, n], 32-bit words too."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (second >> _WORD_BITS) ^ c1 ^ k0, second & _LOW_WORD
        c2, c3 = (first >> _WORD_BITS) ^ c3 ^ k1, first & _LOW_WORD
        k0, k1 = (k0 + _WEYL[0]) & _LOW_WORD, (k1 + _WEYL[1]) & _LOW_WORD
    return np.stack((c0, c1, c2, c3))


def uniforms(seeds: Sequence[int], sample_indices: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) with 53 random bits for each (seed, sample index, position)."""
    seed = np.asarray(seeds, dtype=np.uint64)
    zeros = np.zeros_like(seed)
    counter = np.stack((
        np.asarray(positions, dtype=np.uint64), np.asarray(sample_indices, dtype=np.uint64), zeros, zeros
    ))  # fmt: skip
    words = philox(counter, np.stack((seed & _LOW_WORD, seed >> _WORD_BITS)))
    bits = ((words[0] >> np.uint64(5)) << np.uint64(26)) | (words[1] >> np.uint64(6))
    return np.asarray(bits * 2.0**-53, dtype=np.float64)
