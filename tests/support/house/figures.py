"""Figures of the code's shape: files per folder, lengths of functions, beginnings of docstrings; and their bounds.

The words that the code has given up are in `words`.
"""

from __future__ import annotations

import ast
import re
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.house.import_graph import PACKAGES, syntax_tree
from tests.support.processes import ROOT

MAX_FILES_PER_FOLDER = 16
MAX_MEDIAN_FUNCTION = 8
MAX_P90_FUNCTION = 20
MAX_FUNCTION = 60
MAX_MODULES_THAT_REACH_THE_SCHEDULER = 5

#: Folders of Python code beside the product.
BESIDE = ("tests", "benchmarks", "examples", "docs")

WHAT_CLAUSE = re.compile(r"(What|Whatever|Who|Whoever|Whom|Whose|Where|Wherever|Which|Whichever|How)\b|For one who\b")


@dataclass(frozen=True)
class Function:
    """One function or method, nested ones too."""

    place: str  # file:line
    name: str
    num_lines: int  # signature and docstring counted, decorators not
    has_return_type: bool


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def files_per_folder(*folders: str) -> Counter[str]:
    """Folder -> its files without `__init__.py`."""
    files = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    counted = (path for path in files if path.name != "__init__.py" and "__pycache__" not in path.parts)
    return Counter(str(path.parent.relative_to(ROOT)) for path in counted)


def functions(*folders: str) -> list[Function]:
    """The functions of some folders, the longest first."""
    found = [
        Function(
            f"{path.relative_to(ROOT)}:{node.lineno}",
            node.name,
            (node.end_lineno or node.lineno) - node.lineno + 1,
            node.returns is not None,
        )
        for path in python_files(*folders)
        for node in ast.walk(syntax_tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return sorted(found, key=lambda function: -function.num_lines)


def median_and_p90(found: list[Function]) -> tuple[float, float]:
    """Median and ninth decile of the lengths, in lines."""
    lengths = sorted(function.num_lines for function in found)
    return statistics.median(lengths), statistics.quantiles(lengths, n=10, method="inclusive")[-1]


def docstrings(*folders: str) -> Iterator[tuple[str, str]]:
    """(file:line, text) of each docstring of modules, classes and functions."""
    for path in python_files(*folders):
        for node in ast.walk(syntax_tree(path)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield f"{path.relative_to(ROOT)}:{node.body[0].lineno}", text


def what_clauses() -> list[str]:
    """Docstrings that begin with a clause instead of a subject."""
    every = docstrings(*PACKAGES, *BESIDE)
    return [f"{place} {text.splitlines()[0]}" for place, text in every if WHAT_CLAUSE.match(text)]
