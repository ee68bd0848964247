"""The README's commands work as printed, in order, in a fresh clone, and its transcripts have the shape of the output.

The demo is `make demo`'s own; here only the shape of that command is tried. One block needs a network and servers.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import HANG_SECONDS, ROOT, clean_environment

#: The block that needs the hub and servers is read, and not run.
READ_ONLY = "Qwen/Qwen2-0.5B"

#: A command as printed -> the one that stands for it here.
INSTEAD = {
    "git clone <this repository> nocturne && cd nocturne": ":",
    ". .venv/bin/activate": ":",
    "make demo": "make --dry-run demo > /dev/null",
    "make test": "make --dry-run test > /dev/null",
}

#: Commands that run until a Ctrl-C; the first line says where.
SERVERS = ("producer view",)


def blocks() -> list[list[str]]:
    """The indented blocks that hold commands, without their indentation."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = [re.sub(r"^ {4}", "", block, flags=re.MULTILINE).splitlines() for block in re.findall(BLOCK, text)]
    return [lines for lines in found if any(is_command(line) for line in lines)]


BLOCK = re.compile(r"(?:^(?: {4}.*)?\n)+", flags=re.MULTILINE)


def is_command(line: str) -> bool:
    return re.match(r"(\$ |producer |worker |make |git )", line) is not None


def commands_of(lines: list[str]) -> list[tuple[str, list[str]]]:
    """Each command of a block with the output that is printed below it; a heredoc belongs to its command."""
    found: list[tuple[str, list[str]]] = []
    end = ""
    for line in lines:
        if end or (found and found[-1][0].endswith("\\")):
            command, output = found.pop()
            found.append((f"{command}\n{line}", output))
            end = "" if line == end else end
        elif is_command(line):
            command = re.sub(r"\s{2,}#.*", "", line.removeprefix("$ "))
            found.append((command, []))
            heredoc = re.search(r"<< '(\w+)'$", command)
            end = heredoc[1] if heredoc else ""
        elif line.strip() and found:
            found[-1][1].append(line)
    return found


def shape(line: str) -> str:
    """The line without what differs from run to run."""
    line = re.sub(r"\d{8}-\d{6}-[0-9a-f]{6}", "RUN", line)
    line = re.sub(r"ETA .*", "ETA", line)
    return re.sub(r" +", " ", re.sub(r"-?\d[\d,.]*(e-?\d+)?", "0", line)).strip()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the repository as they are now, in a folder of their own."""
    folder = tmp_path_factory.mktemp("clone") / "nocturne"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for name in ("producer", "worker"):
        script = folder / ".venv" / "bin" / name
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m {name} "$@"\n')
        script.chmod(0o755)
    return folder


def run(command: str, clone: Path) -> str:
    """Runs a command and returns both its outputs; fails the test unless it ends with 0. A server gets a Ctrl-C."""
    environment = clean_environment(NOCTURNE_NUM_THREADS="1")
    environment |= {"PATH": f"{clone / '.venv' / 'bin'}:{environment['PATH']}", "PYTHONPATH": str(clone)}
    with subprocess.Popen(
        ["bash", "-ec", INSTEAD.get(command, command)], cwd=clone, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        output = ""
        if command.startswith(SERVERS):
            output = process.stdout.readline()
            os.killpg(process.pid, signal.SIGINT)
        try:
            output += process.communicate(timeout=HANG_SECONDS)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, f"{command}\n{output}"
    return output


def test_one_block_alone_is_not_run() -> None:
    assert len([lines for lines in blocks() if READ_ONLY in "\n".join(lines)]) == 1
    assert len(blocks()) == 4
    assert {"make demo", ". .venv/bin/activate"} <= {command for lines in blocks() for command, _ in commands_of(lines)}


@pytest.mark.timeout(3 * HANG_SECONDS)  # they are many, on a busy machine too
def test_every_command_works_as_printed_and_in_order(clone: Path) -> None:
    for lines in blocks():
        if READ_ONLY in "\n".join(lines):
            continue
        for command, printed in commands_of(lines):
            output = run(command, clone)
            shapes = {shape(line) for line in output.splitlines()}
            for line in printed:
                assert line.strip() == "…" or shape(line) in shapes, f"{command}\nprinted: {line}\noutput:\n{output}"
    made = {"answers.csv", "answers.parquet", "batch.jsonl", "prompts.html"}
    assert made <= {path.name for path in clone.iterdir()}
    assert not list((clone / ".nocturne").glob("*.sock"))
