"""Rows as lines: whole, within the width that is given, with no character of a cell lost."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from producer.render import visible
from producer.results.sql.layout import cell_text, column_widths, fitting, table_lines, vertical_lines
from producer.results.sql.pager import PagedFile, PagerClosed, pager_command

WORDS = st.text("ab 猫é\n\t\x1b", max_size=40)


def table(columns: list[str], rows: list[tuple[object, ...]], width: int | None = None) -> list[str]:
    widths = column_widths(columns, rows, None, is_short=False)
    assert widths is not None
    return list(table_lines(columns, rows, widths if width is None else fitting(widths, width), is_short=False))


def test_a_table() -> None:
    rows: list[tuple[object, ...]] = [("猫", 1, None, 0.1 + 0.2), ("a\nb", 20, True, [1, "x"])]
    assert table(["n", "count", "z", "w"], rows) == [
        "n     count  z     w",
        "猫        1  null  0.30000000000000004",
        'a\\nb     20  True  [1, "x"]',
    ]


def test_a_table_that_is_too_wide_loses_of_its_widest_columns() -> None:
    assert table(["id", "text"], [("story-1", "x" * 30), ("story-2", "y")], 20) == [
        "id       text",
        "story-1  xxxxxxxxxx…",
        "story-2  y",
    ]
    assert column_widths(["id", "text"], [("a", "x" * 30)], 20, is_short=False) is None


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(30, 120))
def test_columns_that_fit_keep_their_width(widths: list[int], limit: int) -> None:
    fitted = fitting(widths, limit)
    assert sum(fitted) + 2 * (len(fitted) - 1) <= limit
    assert all(now == before for now, before in zip(fitted, widths, strict=True) if before < max(fitted))


def test_vertical_rows() -> None:
    rows = [("a", "one two three four"), ("b", None)]
    assert list(vertical_lines(["id", "text"], rows, 2, 16)) == [
        "─[ 1 of 2 ]─────", "id    a", "text  one two", "      three four", "─[ 2 of 2 ]─────", "id    b", "text  null",
    ]  # fmt: skip


@given(text=WORDS, width=st.none() | st.integers(14, 40))
def test_a_vertical_value_is_whole_and_within_the_width(text: str, width: int | None) -> None:
    _, *lines = vertical_lines(["text"], [(text,)], 1, width)
    assert width is None or all(cell_len(line) <= width for line in lines)
    assert all(character.isprintable() for line in lines for character in line)
    shown = "".join(line[6:] for line in lines)
    assert "".join(shown.split()) == "".join(visible(text).split())


def test_a_value_moves_no_cursor() -> None:
    assert cell_text("a\x1b[2Jb\r") == "a\\x1b[2Jb\\r"
    assert cell_text(1 / 3, is_short=True) == "0.333333" and cell_text(1 / 3) == repr(1 / 3)


@pytest.fixture
def saving_pager(tmp_path: Path) -> Path:
    """A pager that writes all it gets into a file beside it."""
    path = tmp_path / "pager"
    path.write_text(f"#!/bin/sh\nexec cat > {tmp_path / 'seen'}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_more_than_a_screen_goes_through_the_pager(saving_pager: Path) -> None:
    size, terminal = os.terminal_size((20, 10)), io.StringIO()
    few = PagedFile(terminal, [str(saving_pager)], size)
    few.write("short\n" * 8)
    few.close()
    assert terminal.getvalue() == "short\n" * 8 and not (saving_pager.parent / "seen").exists()
    many = PagedFile(terminal, [str(saving_pager)], size)
    for _ in range(5):
        many.write("x" * 30 + "\n")  # two lines of the screen each
    many.close()
    assert (saving_pager.parent / "seen").read_text() == ("x" * 30 + "\n") * 5


def test_a_pager_that_is_left_or_missing() -> None:
    size = os.terminal_size((20, 2))
    left = PagedFile(io.StringIO(), ["true"], size)
    with pytest.raises(PagerClosed):
        for _ in range(10_000):
            left.write("line\n" * 1000)
    left.close()
    terminal = io.StringIO()
    missing = PagedFile(terminal, ["/nowhere/pager"], size)
    missing.write("line\n" * 5)
    missing.close()
    assert terminal.getvalue() == "line\n" * 5


def test_the_pager_that_a_person_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGER", "less -S")
    assert pager_command() == ["less", "-S"]
    monkeypatch.setenv("PAGER", "less 'of")
    assert pager_command() == []
    monkeypatch.setenv("PAGER", "cat")
    assert pager_command() == []
