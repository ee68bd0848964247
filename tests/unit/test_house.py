"""The bounds of the code's shape; `python -m tests.house` prints the figures and what breaks them."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.house import SCHEDULER
from tests.support.house import figures
from tests.support.house.import_graph import PACKAGES, modules_that_reach
from tests.support.house.words import old_words
from tests.support.processes import ROOT


@pytest.mark.parametrize("top", [*PACKAGES, "tests", "benchmarks"])
def test_no_folder_has_many_files(top: str) -> None:
    assert max(figures.files_per_folder(top).values()) <= figures.MAX_FILES_PER_FOLDER


def test_functions_are_short() -> None:
    median, p90 = figures.median_and_p90(figures.functions(*PACKAGES))
    assert median <= figures.MAX_MEDIAN_FUNCTION
    assert p90 <= figures.MAX_P90_FUNCTION


def test_every_function_has_a_return_type() -> None:
    assert not [function.place for function in figures.functions(*PACKAGES) if not function.has_return_type]


def test_few_modules_of_the_engine_reach_the_scheduler() -> None:
    assert len(modules_that_reach(SCHEDULER, "worker.engine")) <= figures.MAX_MODULES_THAT_REACH_THE_SCHEDULER


def test_no_function_is_long() -> None:
    longest = figures.functions(*PACKAGES)[0]
    assert longest.num_lines <= figures.MAX_FUNCTION, f"{longest.place} {longest.name}"


def test_the_version_is_the_one_that_the_changelog_opens_with() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    newest = re.search(
        r"^## (\S+?),? ?(unreleased)?$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert newest is not None
    assert version == newest[1] + (".dev0" if newest[2] else "")


def test_no_docstring_begins_with_a_what_clause() -> None:
    assert figures.what_clauses() == []


def test_no_word_that_was_given_up_is_left() -> None:
    assert old_words() == []
