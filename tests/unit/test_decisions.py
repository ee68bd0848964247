"""The records in docs/decisions: each has a date and a status, and the index has them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.processes import ROOT

FOLDER = ROOT / "docs" / "decisions"
RECORDS = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
HEAD = re.compile(
    r"# (?:\d{4}: )?(?P<title>.+)\n\n"
    r"- Date: (?P<date>\d{4}-\d\d-\d\d)\n"
    r"- Status: (?P<status>accepted|superseded by \d{4})\n"
)


def index_row(path: Path) -> str:
    """The row of the index that a record should have."""
    head = HEAD.match(path.read_text(encoding="utf-8"))
    assert head, f"{path.name} does not begin with its title, date and status"
    return f"| {path.name[:4]} | [{head['title']}]({path.name}) | {head['date']} | {head['status']} |"


def test_the_index_lists_every_record_in_order() -> None:
    rows = [line for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| 0")]
    assert rows == [index_row(path) for path in RECORDS]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name[:4])
def test_a_record_is_named_by_its_number(path: Path) -> None:
    assert re.fullmatch(r"\d{4}(-[a-z0-9]+)+\.md", path.name)


def test_numbers_have_no_gap() -> None:
    assert [int(path.name[:4]) for path in RECORDS] == list(range(1, len(RECORDS) + 1))
