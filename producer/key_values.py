"""The values of KEY=VALUE options: JSON, or plain text."""

from __future__ import annotations

import json
from typing import Any


def json_or_text(text: str) -> Any:
    """The value of a text that is JSON; any other text as it stands."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(name: str) -> Any:
    """Python reads NaN and Infinity, which JSON lacks."""
    raise ValueError(name)
