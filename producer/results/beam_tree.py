"""The hypotheses of a beam search as a tree of their common prefixes: it shows where they parted, and their scores.

They part by token, since equal texts may be of other tokens. Rows of 0.1 have no token ids; their texts part by word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text
from rich.tree import Tree

from producer.render import visible

WORDS = re.compile(r"\s*\S+|\s+")


@dataclass
class Branch:
    """Tokens that all hypotheses of a branch have in common, and the branches or the ends behind them."""

    text: str
    num_tokens: int
    branches: list[Branch] = field(default_factory=list)
    ending: dict[str, Any] | None = None  # the hypothesis that ends here, where the branch is of one


def common_prefixes(hypotheses: Sequence[dict[str, Any]]) -> list[Branch]:
    """The branches from the root, each before those that are worse than its best hypothesis."""
    root = Branch("", 0)
    left = [(root, [(hypothesis, _pieces(hypothesis)) for hypothesis in hypotheses], 0)]
    while left:
        node, members, start = left.pop()
        for group in _groups(members, start):
            end = _end_of_common(group, start)
            hypothesis, pieces = group[0]
            branch = Branch("".join(text for _, text in pieces[start:end]), end - start)
            node.branches.append(branch)
            if len(group) == 1:
                branch.ending = hypothesis
            else:
                left.append((branch, group, end))
    return root.branches


def beam_tree(title: str, hypotheses: Sequence[dict[str, Any]]) -> Tree:
    """The tree for a terminal, the best hypothesis first."""
    tree = Tree(Text(title))
    left = [(tree, common_prefixes(hypotheses))]
    while left:
        node, branches = left.pop()
        left += [(node.add(_label(branch)), branch.branches) for branch in branches]
    return tree


#: A hypothesis, and its tokens as (identity, text).
_Pieces = tuple[dict[str, Any], list[tuple[Any, str]]]


def _pieces(hypothesis: dict[str, Any]) -> list[tuple[Any, str]]:
    ids, texts = hypothesis.get("token_ids"), hypothesis.get("tokens")
    if ids and texts and len(ids) == len(texts):
        return list(zip(ids, texts, strict=True))
    return [(word, word) for word in WORDS.findall(hypothesis["text"])]


def _groups(members: list[_Pieces], start: int) -> list[list[_Pieces]]:
    """The members by their token at `start`; one that has ended there is a group of its own."""
    groups: dict[Any, list[_Pieces]] = {}
    for number, member in enumerate(members):
        pieces = member[1]
        key = (pieces[start][0],) if len(pieces) > start else ("ended", number)
        groups.setdefault(key, []).append(member)
    return list(groups.values())


def _end_of_common(group: list[_Pieces], start: int) -> int:
    """The first position at which the group parts; the end of the only one."""
    end, shortest = start, min(len(pieces) for _, pieces in group)
    while end < shortest and len({pieces[end][0] for _, pieces in group}) == 1:
        end += 1
    return end


def _label(branch: Branch) -> Text:
    ending = branch.ending
    if ending is None:
        return Text(visible(branch.text), style="bold")
    label = Text(f"{ending['score']:.4f} ", style="cyan")
    label.append(f"({ending['num_tokens']} tokens, {ending['finish_reason']}) ", style="dim")
    label.append(visible(branch.text))
    return label
