"""Durations as people write them: 90s, 30m, 8h, 2d."""

from __future__ import annotations

import re
from datetime import timedelta

from producer.errors import UsageError

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

#: Longer ones lead out of the years that dates can have.
MAX_DAYS = 36_500


def parse_duration(option: str, text: str) -> timedelta:
    """The value of an option as a duration. Raises `UsageError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None or not float(match[1]) or float(match[1]) > 1e6:
        raise UsageError(f"{option} must be a duration such as 90s, 30m, 8h or 2d, got {text!r}")
    duration = timedelta(**{UNITS[match[2]]: float(match[1])})
    if duration.days >= MAX_DAYS:
        raise UsageError(f"{option} must be less than {MAX_DAYS}d, got {text!r}")
    return duration
