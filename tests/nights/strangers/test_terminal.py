"""Data is text: on a terminal it neither moves the cursor nor colors, and in a spreadsheet it computes nothing."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text
from sqlalchemy import Engine, update

from models.schema.job import Job
from producer.console import PlainConsole
from producer.errors import UsageError
from producer.render import check_csv_safe, table, write_csv
from producer.terminal_text import TerminalFile, visible, without_formula
from tests.conftest import Producer
from tests.support.processes import clean_environment
from tests.support.table_rows import RUN_ID, insert_run

HOSTILE = "\x1b[2Jred \x9b31m \u202eturned\u2066 \x7f :x: [bold]loud[/bold] [link=file:///]here"


def is_harmless(shown: str) -> bool:
    return all(character.isprintable() or character in "\n\t" for character in shown)


@given(st.text())
def test_what_a_terminal_gets_is_printable_and_json_stays_json(text: str) -> None:
    for shown in (visible(text), written(text), written(json.dumps(text, ensure_ascii=False))):
        assert is_harmless(shown)
    if "\ud800" > max(text, default="") or min(text, default="") > "\udfff":
        assert json.loads(written(json.dumps(text, ensure_ascii=False))) == text


def written(text: str) -> str:
    file = io.StringIO()
    TerminalFile(file).write(text)
    return file.getvalue()


def test_a_string_is_a_text_wherever_a_console_prints_it() -> None:
    console = PlainConsole(file=io.StringIO(), width=200, force_terminal=True)
    console.print(HOSTILE)
    console.rule(HOSTILE)
    console.print(table([HOSTILE], [[HOSTILE], [None]]))
    console.print(Text(visible(HOSTILE)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count(":x: [bold]loud") == 5
    assert "\x1b[2J" not in shown and "\x9b" not in shown and "\u202e" not in shown


def on_a_terminal(*arguments: str, cwd: Path) -> str:
    """The output of a command whose standard output is a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "producer", *arguments], stdout=theirs, stderr=subprocess.DEVNULL, cwd=cwd,
        env=clean_environment(TERM="dumb"),
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
    os.close(ours)
    assert process.wait() == 0
    return shown.decode().replace("\r\n", "\n")


def test_no_format_brings_control_characters_to_a_terminal(
    sqlite_database: Engine, sqlite_url: str, tmp_path: Path, producer: Producer
) -> None:
    insert_run(sqlite_database, 1)
    with sqlite_database.begin() as connection:
        connection.execute(update(Job).values(prompt=HOSTILE, custom_id=HOSTILE, metadata_={"=1+1": HOSTILE}))
    at = ("--database", sqlite_url)
    for command in (("results", "--format", "csv"), ("show", RUN_ID, HOSTILE)):
        shown = on_a_terminal(*command, *at, cwd=tmp_path)
        assert is_harmless(shown) and ":x: [bold]loud[/bold]" in shown, shown
    assert HOSTILE in producer("results", "--format", "csv", *at).stdout  # a file gets it as it is
    safe = list(csv.DictReader(io.StringIO(producer("results", "--format", "csv", "--csv-safe", *at).stdout)))
    assert safe[0]["metadata"] == json.dumps({"=1+1": HOSTILE}, ensure_ascii=False)
    with pytest.raises(UsageError, match="--csv-safe is for CSV, and the format is jsonl"):
        check_csv_safe("jsonl", is_csv_safe=True)


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1", "\u00a0=1"])
def test_no_cell_is_a_formula(cell: str) -> None:
    file = io.StringIO()
    write_csv([cell], [[cell], [-1], [-0.5], ["a=1"], [None], [""]], file, is_safe=True)
    rows = list(csv.reader(io.StringIO(file.getvalue(), newline="")))
    assert rows[0] == rows[1] == ["'" + cell]
    assert rows[2:] == [["-1"], ["-0.5"], ["a=1"], [], [""]]


@given(st.text(max_size=20))
def test_a_safe_cell_begins_with_nothing_that_computes(cell: str) -> None:
    safe = without_formula(cell)
    assert safe == cell or safe == "'" + cell
    assert not safe.strip().startswith(("=", "+", "-", "@"))
