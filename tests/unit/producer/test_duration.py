"""Durations of the command line."""

from __future__ import annotations

from datetime import timedelta

import pytest

from producer.duration import parse_duration
from producer.errors import UsageError


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90s", timedelta(seconds=90)), ("30m", timedelta(minutes=30)), ("1.5h", timedelta(minutes=90)),
        ("2d", timedelta(days=2)),
    ],
)  # fmt: skip
def test_durations(text: str, duration: timedelta) -> None:
    assert parse_duration("--expires", text) == duration


@pytest.mark.parametrize("text", ["36500d", "1000000d", "900000h"])
def test_longer_than_dates_reach_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"^--older-than must be less than 36500d, got '{text}'$"):
        parse_duration("--older-than", text)


@pytest.mark.parametrize("text", ["", "8", "h", "-1h", "0s", "8 hours", "1e3h", "99999999999d"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--expires must be a duration such as"):
        parse_duration("--expires", text)
