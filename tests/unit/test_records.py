"""Written records: decisions with date and status, claims with commands that exist, a log in the order of its dates."""

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


PERFORMANCE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
LOG = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")


def test_the_page_of_claims_is_short() -> None:
    assert len(PERFORMANCE.splitlines()) <= 80


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m (benchmarks\.[^`]+)", PERFORMANCE + LOG))))
def test_a_command_of_a_claim_names_a_benchmark_and_its_options(command: str) -> None:
    module, *words = command.split()
    path = ROOT / module.replace(".", "/")
    source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    for option in re.findall(r"--[a-z-]+", " ".join(words)):
        assert f'"{option}"' in source, option


def test_the_log_is_dated_newest_first_and_each_entry_marked() -> None:
    dates = re.findall(r"^## (.+)$", LOG, re.MULTILINE)
    assert dates == sorted(dates, reverse=True)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for date in dates)
    entries = re.findall(r"^- (.*)", LOG, re.MULTILINE)
    assert len(entries) > 50
    assert not [entry for entry in entries if not re.match(r"\*\*(kept|negative|measured)\*\* \*.+?\*", entry)]


def test_the_changelog_goes_by_release() -> None:
    releases = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert all(re.fullmatch(r"\d+\.\d+\.\d+, (unreleased|\d{4}-\d\d-\d\d)", release) for release in releases)
