"""The tree of a beam search: its paths are the hypotheses, and it parts where their tokens do."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from producer.results.beam_tree import Branch, beam_tree, common_prefixes


def hypothesis(ids: list[int], score: float = -1.0, **changed: Any) -> dict[str, Any]:
    tokens = [f" t{each}" for each in ids]
    stored = {"text": "".join(tokens), "score": score, "finish_reason": "eos", "num_tokens": len(ids)}
    return {**stored, "token_ids": ids, "tokens": tokens, **changed}


def paths(branches: list[Branch], before: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The text from the root to each end, with the hypothesis that ends there."""
    for branch in branches:
        if branch.ending is not None:
            assert not branch.branches
            yield before + branch.text, branch.ending
        else:
            assert len(branch.branches) > 1
        yield from paths(branch.branches, before + branch.text)


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=12), st.booleans())
def test_the_paths_are_the_hypotheses(found: list[list[int]], is_of_0_1: bool) -> None:
    hypotheses = [hypothesis(ids, -float(index)) for index, ids in enumerate(found)]
    if is_of_0_1:
        hypotheses = [
            {name: value for name, value in each.items() if name not in ("token_ids", "tokens")} for each in hypotheses
        ]
    ends = list(paths(common_prefixes(hypotheses)))
    assert sorted(each["score"] for _, each in ends) == sorted(each["score"] for each in hypotheses)
    assert all(text == each["text"] for text, each in ends)


def drawn(hypotheses: list[dict[str, Any]]) -> list[str]:
    output = io.StringIO()
    Console(file=output, width=120).print(beam_tree("beam", hypotheses))
    return [line.rstrip() for line in output.getvalue().splitlines()]


def test_a_tree_shows_where_beams_parted_and_their_scores() -> None:
    found = [hypothesis([1, 2, 3, 4], -1.0), hypothesis([1, 2, 5], -2.0), hypothesis([1, 2, 3, 6], -3.0)]
    assert drawn(found) == [
        "beam",
        "└──  t1 t2",
        "    ├──  t3",
        "    │   ├── -1.0000 (4 tokens, eos)  t4",
        "    │   └── -3.0000 (4 tokens, eos)  t6",
        "    └── -2.0000 (3 tokens, eos)  t5",
    ]


def test_equal_texts_of_other_tokens_are_other_hypotheses() -> None:
    same = [hypothesis([1, 2], text="a b", tokens=["a", " b"]), hypothesis([1, 3], text="a b", tokens=["a", " b"])]
    assert drawn(same)[1:] == ["└── a", "    ├── -1.0000 (2 tokens, eos)  b", "    └── -1.0000 (2 tokens, eos)  b"]


def test_a_search_may_have_many_beams() -> None:
    chain = [hypothesis([1] * length + [2]) for length in range(1500)]
    assert len(list(_ends(common_prefixes(chain)))) == 1500
    assert len(beam_tree("beam", chain).children) > 0


def _ends(branches: list[Branch]) -> Iterator[Branch]:
    left = list(branches)
    while left:
        branch = left.pop()
        left += branch.branches
        if branch.ending is not None:
            yield branch
