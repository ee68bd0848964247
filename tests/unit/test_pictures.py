"""The pictures of the README: they are there, need no network, and a live view falls apart into its frames."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live
from rich.text import Text

from docs.pictures_of_pages import PICTURES, draw_frame, frames
from tests.support.processes import ROOT


def test_the_readme_shows_pictures_that_are_there() -> None:
    readme = (ROOT / "README.md").read_text()
    shown = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", readme)
    assert {"live-view.svg", "report.png"} <= {Path(path).name for _, path in shown}
    for words, path in shown:
        assert (ROOT / path).is_file() and len(words) > 20, path  # the words are for those who do not see it
    for picture in PICTURES.glob("*.svg"):
        assert not re.search(r"url\([\"']?http", picture.read_text()), picture


def test_the_frames_of_a_live_view_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # a dumb terminal gets no frames
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=60, color_system="truecolor")
    with Live(console=console, auto_refresh=False) as live:
        for number in range(3):
            live.update(Text(f"{number} of 3 jobs\n{number} running", style="green"), refresh=True)
    found = frames(output.getvalue())
    heads = [Text.from_ansi(frame).plain.split("\n")[0].strip() for frame in found]
    assert [head for head in dict.fromkeys(heads) if head] == [f"{number} of 3 jobs" for number in range(3)]
    draw_frame(found[-1], "a title", tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text()
    assert "a&#160;title" in drawn and "2&#160;running" in drawn and "font-face" not in drawn
