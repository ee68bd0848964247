"""The table of `producer status` is readable in every terminal: cells are left out or folded, never cut."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from producer.console import PlainConsole
from producer.render import MAX_CELL, visible
from producer.results.queries import RunProgress
from producer.results.run_tables import COLUMNS, runs_table

COUNTS = ("succeeded", "failed", "cancelled", "expired", "running", "queued")
ID = "20261127-152951-5c3aed"


def progress(counts: dict[str, int], name: str = "study") -> RunProgress:
    states = dict.fromkeys(COUNTS, 0) | counts
    return RunProgress(
        id=ID, name=name, model="Qwen/Qwen2-0.5B-Instruct", state="running", num_jobs=sum(states.values()),
        completion_tokens=12_345,
        tokens_per_second=0.0, source="prompts.jsonl", created_at=datetime.now(UTC), finished_at=None, mean_running=0.0,
        num_workers=1, max_running=None, **states,
    )  # fmt: skip


def shown(runs: list[RunProgress], width: int) -> list[str]:
    file = StringIO()
    PlainConsole(file=file, width=width).print(runs_table(runs, width))
    return file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (200, [*COLUMNS]),
        (100, "run name state jobs succeeded failed running tokens model".split()),
        (80, "run name state jobs succeeded failed running tokens".split()),
        (60, "run state jobs succeeded failed".split()),
        (50, "run state succeeded failed".split()),
    ],
)
def test_columns_of_a_width(width: int, columns: list[str]) -> None:
    lines = shown([progress({"succeeded": 300, "failed": 1, "running": 33})], width)
    assert lines[0].split() == columns
    assert lines[1].split()[0] == ID


@given(
    st.integers(30, 200),
    st.lists(st.fixed_dictionaries({each: st.integers(0, 10**7) for each in COUNTS}), min_size=1, max_size=3),
    st.text(st.characters(codec="utf-8"), max_size=40),
)
def test_nothing_is_cut(width: int, counts: list[dict[str, int]], name: str) -> None:
    assume(len(visible(name)) <= MAX_CELL)
    lines = shown([progress(each, name) for each in counts], width)
    text = "\n".join(lines)
    assert "…" not in text.replace(name, "")
    for each in counts:
        ends = [each[state] for state in ("succeeded", "failed", "cancelled", "expired")]
        if width >= 70:  # below, digits are folded
            assert all(str(count) in text for count in ends)
