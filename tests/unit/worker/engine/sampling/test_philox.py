"""The counter-based generator: known answers, the parts of its key, and uniformity."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.distributions import LEVEL, chi_square_p_value
from worker.engine.sampling.philox import philox, uniforms

#: Counter, key, words: the known answers of Random123, the library of Philox's authors.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    made = philox(np.array(counter, dtype=np.uint64)[:, None], np.array(key, dtype=np.uint64)[:, None])
    assert made[:, 0].tolist() == list(words)


def test_a_draw_is_the_same_alone_and_among_others() -> None:
    seeds, samples, positions = [3, 2**63 - 1, 0, 77], [0, 255, 1, 0], [0, 999_999, 5, 6]
    together = uniforms(seeds, samples, positions)
    alone = [uniforms([s], [i], [p])[0] for s, i, p in zip(seeds, samples, positions, strict=True)]
    assert together.tolist() == alone


def test_each_part_of_the_key_matters() -> None:
    base = (5, 1, 2)
    values = {uniforms(*[[part] for part in key])[0] for key in (base, (6, 1, 2), (5, 2, 2), (5, 1, 3), (5, 2, 1))}
    assert len(values) == 5


def test_the_high_half_of_a_seed_matters() -> None:
    assert uniforms([1], [0], [0])[0] != uniforms([1 + 2**32], [0], [0])[0]


def test_numbers_are_uniform_along_each_part_of_the_key() -> None:
    count = 100_000
    for axis in range(3):
        key = [[7] * count, [0] * count, [0] * count]
        key[axis] = list(range(count))
        numbers = uniforms(*key)
        assert numbers.min() >= 0 and numbers.max() < 1
        counts, _ = np.histogram(numbers, bins=1_000, range=(0, 1))
        assert chi_square_p_value(counts, np.full(1_000, count / 1_000)) > LEVEL
        # Neighbors must not follow one another.
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 5 / count**0.5
