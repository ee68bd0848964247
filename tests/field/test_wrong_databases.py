"""Every reading command on a database that is not ours, empty, damaged or a folder: one line and exit code 2."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import pytest

from producer.cli import main

COMMANDS = {
    "status": ["status"],
    "results": ["results"],
    "show": ["show", "run", "job"],
    "report": ["report", "-o", "report.html"],
}


def make_wrong(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "other":
        with sqlite3.connect(path) as connection:
            connection.execute("create table notes (text)")
        connection.close()
    else:
        path.write_bytes(
            {"empty": b"", "damaged": b"SQLite format 3\0" + b"\xff" * 5000, "text": b"notes\n" * 99}[kind]
        )


@pytest.mark.parametrize("kind", ["empty", "other", "damaged", "text", "folder"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_database_is_one_line(
    command: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_wrong(tmp_path / "wrong.db", kind)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(sys, "argv", ["producer", *COMMANDS[command], "--database", "sqlite:///wrong.db"])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
    assert not printed.out and not (tmp_path / "report.html").exists()
