"""Values on their way in and out: KEY=VALUE options, comma lists of names, JSON of numbers that JSON lacks."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from producer.errors import UsageError
from producer.key_values import json_or_text
from producer.options import split_names
from producer.render import to_json
from producer.results.selection import parse_selection

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("true", True), ('"x"', "x"), ("x", "x"), ("", ""), ("NaN", "NaN"), ("-Infinity", "-Infinity"),
     ("9" * 5_000, "9" * 5_000), (DEEP, DEEP)],
)  # fmt: skip
def test_a_value_is_json_or_text(text: str, value: Any) -> None:
    assert json_or_text(text) == value
    assert parse_selection(None, None, [f"a={text}"]).metadata == (("a", value),)


def test_a_list_of_names() -> None:
    assert split_names('a, "b,c" ,,d') == ("a", "b,c", "d")
    with pytest.raises(UsageError, match="--metadata-columns must be a comma list of names, got 'a.rb'"):
        split_names("a\rb")


def test_a_number_that_json_lacks_is_null() -> None:
    row = {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": Decimal("NaN"), "e": 0.5, "f": datetime(2026, 1, 1)}
    assert json.loads(to_json(row), parse_constant=pytest.fail) == {
        "a": None, "b": [None, {"c": None}], "d": None, "e": 0.5, "f": "2026-01-01T00:00:00"
    }  # fmt: skip
    assert to_json({"at": datetime(2026, 1, 1, tzinfo=UTC)}) == '{"at": "2026-01-01T00:00:00+00:00"}'
