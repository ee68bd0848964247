"""The walk in docs/architecture.md names files and functions that exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.processes import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
HOPS = re.findall(r"^(\d+)\. `([\w/.]+)` `([\w.]+)`", PAGE, flags=re.MULTILINE)


def names_in(source: str) -> set[str]:
    """Functions and classes of a module, methods as `Class.method`."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


def test_the_hops_are_numbered_without_a_gap_from_the_command_to_the_row() -> None:
    assert [int(number) for number, _, _ in HOPS] == list(range(1, len(HOPS) + 1))
    assert len(HOPS) > 30 and HOPS[0][1] == "producer/cli.py"


@pytest.mark.parametrize(("path", "name"), [hop[1:] for hop in HOPS])
def test_each_hop_exists(path: str, name: str) -> None:
    assert name in names_in((ROOT / path).read_text(encoding="utf-8"))


def test_the_wings_of_the_engine_have_the_sentences_of_their_folders() -> None:
    page = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")
    wings = re.findall(r"^\| `(\w+)/` \| (.*?) \| ", page, re.MULTILINE)
    assert len(wings) == 5
    for folder, sentence in wings:
        module = ast.parse((ROOT / "worker" / "engine" / folder / "__init__.py").read_text(encoding="utf-8"))
        assert (ast.get_docstring(module) or "").splitlines()[0] == sentence, folder
