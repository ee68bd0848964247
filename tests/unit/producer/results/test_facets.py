"""The facets of a page against the same counted one by one."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.results.report import facets
from producer.results.report.facets import MAX_FACETS, MAX_VALUES, Facets
from producer.results.selection import Selection

VALUES = st.sampled_from([True, False, 0, 1, 1.0, 2.5, "1", "a", None, [1], "x" * 61])
METADATA = st.dictionaries(st.sampled_from("abc"), VALUES | st.dictionaries(st.sampled_from("de"), VALUES), max_size=3)


@given(st.lists(METADATA, max_size=30), st.integers(1, 40))
def test_each_value_has_its_jobs(rows: list[dict[str, Any]], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facets, "MAX_TEXTS", most)  # more texts are counted in between
        counted = Facets()
        for row in rows:
            counted.add([json.dumps(row)])
        found = counted.described()
    wanted: dict[str, Counter[str]] = {}
    for row in rows:
        inner = {f"{name}.{key}": value for name, d in row.items() if isinstance(d, dict) for key, value in d.items()}
        for name, value in (row | inner).items():
            if isinstance(value, str | int | float) and len(str(value)) <= 60:
                text = json.dumps(int(value)) if isinstance(value, float) and value == 1 else json.dumps(value)
                wanted.setdefault(name, Counter())[text] += 1
    assert {name: {json.dumps(v): n for v, n in values} for name, values in found.items()} == wanted
    for name, values in found.items():  # and each is what `--where` selects by
        for value, count in values:
            selected = [row for row in rows if Selection(metadata=((name, value),)).matches({"metadata": row})]
            is_number = isinstance(value, int | float)  # True is 1 there
            assert len(selected) >= count if is_number else len(selected) == count


def test_keys_with_many_values_are_none() -> None:
    counted = Facets()
    counted.add(json.dumps({"id": number, "half": number // 2}) for number in range(MAX_VALUES + 1))
    counted.add([json.dumps({f"key{number}": 1 for number in range(MAX_FACETS)})])
    found = counted.described()
    assert "id" not in found and len(found["half"]) == MAX_VALUES // 2 + 1 and len(found) == MAX_FACETS - 1


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (Selection(), ""),
        (Selection(("failed", "expired")), "state failed or expired"),
        (Selection((), ("beam",), (("a.b", 1.5), ("c", "d e"))), "strategy beam; a.b = 1.5; c = d e"),
    ],
)
def test_a_selection_in_words(selection: Selection, words: str) -> None:
    assert selection.words == words
