"""The numbers that a report computes of each answer."""

from __future__ import annotations

import pytest

from producer.results.report.measures import is_json, repetition


def test_repetition_is_the_share_of_repeated_word_pairs() -> None:
    assert repetition("") == repetition("one two three") == 0.0
    assert repetition("a b a b a b") == pytest.approx(1 - 2 / 5)


def test_json_is_recognized() -> None:
    assert is_json('{"sum": 1}') and not is_json("{")
