"""Makes the pictures of the README of the study on the toy model: `python -m docs.pictures_of_pages`.

`live-view.svg` is a frame of `producer run` on a terminal, `report.png` a part of the page of `producer report`, in a
headless Chromium of the system's packages.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from tests.support.processes import ROOT, clean_environment

PICTURES = ROOT / "docs" / "pictures"

#: Of the terminal, and of the browser's window.
COLUMNS, LINES = 100, 30
WIDTH, HEIGHT = 1280, 1440

#: The picture leaves out what would push the plots and the answers out of it.
STYLE = "#failures, #settings, #matrix, .plots > :nth-child(n+7), .toolbar, #contents { display: none }"

STUDY = (
    "run", "examples/study.jsonl", "--name", "study", "--seed", "1", "--strategy", "greedy,sample,nucleus,beam",
    "--temperature", "0.001,0.1,0.5,1,10", "--top-p", "0.9,0.15", "--num-beams", "1,4,8", "--length-penalty", "0.5,1,2",
    "--max-new-tokens", "400", "--repeat", "3", "--model", "examples/tiny/model",
)  # fmt: skip

#: Rich goes back to the first line of a frame before it draws the next.
REDRAWN = re.compile(r"(?:\r?\x1b\[2K|\x1b\[1A)+")
FONT = re.compile(r"@font-face \{[^}]*\}\s*")  # of a network: the reader's own monospace stands in
CURSOR = re.compile(r"\x1b\[\?25[lh]")


def terminal_output(*arguments: str) -> str:
    """The bytes that the `producer` command writes to a terminal, as text."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**clean_environment(), "TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": str(COLUMNS)}
    command = [sys.executable, "-m", "producer", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the end of a terminal that nobody writes to
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    if process.wait():
        raise SystemExit(f"producer {' '.join(arguments)} ended with {process.returncode}")
    return b"".join(parts).decode()


def frames(output: str) -> list[str]:
    """The frames of a live view, in their order."""
    found = (CURSOR.sub("", part).replace("\r", "").strip("\n") for part in REDRAWN.split(output))
    return [frame for frame in found if "\n" in frame]


def draw_frame(frame: str, title: str, path: Path) -> None:
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(frame))
    drawn = console.export_svg(title=title, unique_id=path.stem)
    path.write_text(FONT.sub("", drawn), encoding="utf-8")


def draw_report(page: Path, path: Path) -> None:
    """The top of a page, in few colors so that the file is small."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("the picture of the report needs chromium; install the system's package")
    with tempfile.TemporaryDirectory() as folder:
        shot, copy = Path(folder) / "shot.png", Path(folder) / "page.html"
        copy.write_text(page.read_text(encoding="utf-8").replace("</style>", f"{STYLE}</style>", 1), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        flags += [f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}"]
        flags += ["--virtual-time-budget=20000", f"--screenshot={shot}"]
        subprocess.run([chromium, *flags, copy.as_uri()], check=True, capture_output=True, timeout=300)
        with Image.open(shot) as image:
            image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        shown = frames(terminal_output(*STUDY, "--home", home))
        busy = [frame for frame in shown if "cpu" in frame] or shown
        draw_frame(busy[len(busy) * 2 // 3], "producer run examples/study.jsonl", PICTURES / "live-view.svg")
        page = Path(home) / "report.html"
        subprocess.run(
            [sys.executable, "-m", "producer", "report", "study", "--home", home, "-o", str(page)],
            cwd=ROOT, env=clean_environment(), check=True, capture_output=True,
        )  # fmt: skip
        draw_report(page, PICTURES / "report.png")


if __name__ == "__main__":
    main()
