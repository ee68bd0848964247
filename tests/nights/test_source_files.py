"""Prompt files that are pipes, and files that grow while they are read: a file is read twice, and both must agree."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from sqlalchemy import Engine

import producer.runs.writer
from models.schema.job import Job
from models.schema.run import Run
from producer.errors import UsageError
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import Submission, read_lines
from producer.prompts.readers.source_file import FileState, readable_twice
from producer.prompts.validation import check
from producer.runs.writer import write
from tests.conftest import TOY_MODEL
from tests.support.processes import HANG_SECONDS, clean_environment
from tests.support.table_rows import column_of

NUM_LINES = 5_000


def lines_of(count: int, first: int = 0) -> bytes:
    return b"".join(json.dumps({"custom_id": f"{n}", "prompt": f"p{n}"}).encode() + b"\n" for n in range(first, count))


def test_the_shell_s_pipes_are_read_once_and_whole(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines_of(NUM_LINES))
    done = subprocess.run(
        ["bash", "-c", '"$0" -m producer run --model "$1" --dry-run --json <(cat a.jsonl)', sys.executable, TOY_MODEL],
        cwd=tmp_path, capture_output=True, text=True, env=clean_environment(TMPDIR=str(tmp_path)), timeout=HANG_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["jobs"] == NUM_LINES
    assert not list(tmp_path.glob("prompts-*"))


def csv_of(count: int) -> bytes:
    return b"custom_id,prompt\n" + b"".join(f"{n},x\n".encode() for n in range(count))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pipe", lines_of(NUM_LINES)),
        ("pipe.csv", csv_of(NUM_LINES)),
        ("pipe.jsonl.gz", gzip.compress(lines_of(NUM_LINES), mtime=0)),
        ("/dev/fd/@FD@", lines_of(NUM_LINES)),
        ("/proc/self/fd/@FD@", lines_of(NUM_LINES)),
    ],
)
def test_a_pipe_is_read_once_and_whole(name: str, content: bytes, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    path = tmp_path / name.replace("@FD@", str(reading))
    if "@FD@" not in name:
        os.mkfifo(path)
    writer = Thread(target=_write, args=(path if "@FD@" not in name else writing, content))
    writer.start()
    with readable_twice(path) as copy:
        assert check(Submission(copy, "toy", Grid({}))).num_jobs == NUM_LINES
    writer.join()
    os.close(reading)
    assert not copy.exists()


def _write(place: Path | int, content: bytes) -> None:
    with open(place, "wb") as file:
        file.write(content)


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/urandom", "/dev/null"])
def test_a_device_is_no_prompt_file(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is neither a file nor a pipe"), readable_twice(Path(name)):
        raise AssertionError("it was read")


def test_a_copy_of_a_pipe_is_private(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=pipe.write_bytes, args=(b"secret",))
    writer.start()
    with readable_twice(pipe) as copy:
        assert copy.read_bytes() == b"secret" and copy.suffix == ".jsonl"
        assert copy.stat().st_mode & 0o777 == 0o600
    writer.join()
    assert not copy.exists()


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(lines_of(150, first=100))


def shrink(path: Path) -> None:
    path.write_bytes(lines_of(50))


def replace_by_another(path: Path) -> None:
    path.with_suffix(".new").write_bytes(lines_of(100))
    path.with_suffix(".new").replace(path)


def rewrite_in_place(path: Path) -> None:
    text = path.read_bytes().replace(b"p1", b"q1")
    with path.open("r+b") as file:
        file.write(text)


@pytest.mark.parametrize("change", [grow, shrink, replace_by_another, rewrite_in_place])
@pytest.mark.parametrize("is_during", [False, True], ids=["between the passes", "during the second"])
def test_a_file_that_changes_is_refused_and_nothing_is_written(
    database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], is_during: bool
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(100))
    submission = Submission(path, "toy", Grid({}), seed=1, file_state=FileState.of(path))
    report = check(submission)

    def changing(*arguments: object) -> object:
        lines = read_lines(*arguments)  # type: ignore[arg-type]
        yield next(lines)
        change(path)
        yield from lines

    if is_during:
        monkeypatch.setattr(producer.runs.writer, "read_lines", changing)
    else:
        change(path)
    with pytest.raises(UsageError, match="changed while it was read.*nothing was submitted"):
        write(submission, report, database)
    assert column_of(database, Run.id) == column_of(database, Job.id) == []


def test_a_file_that_stays_is_written(database: Engine, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(100))
    submission = Submission(path, "toy", Grid({}), seed=1, name="n", file_state=FileState.of(path))
    assert write(submission, check(submission), database).num_new == 100
    grow(path)
    later = Submission(path, "toy", Grid({}), seed=1, name="n", file_state=FileState.of(path))
    assert write(later, check(later), database).num_new == 50
