"""A shell's streams that are closed or full, and its folder that is gone: the work is done, or a line says why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, TOY_MODEL, Producer
from tests.support.processes import HANG_SECONDS, CommandProcess, clean_environment, wait_until

FULL = "error: cannot write to standard output: No space left on device; send it elsewhere\n"


def of_shell(tmp_path: Path, command: str) -> tuple[int, str]:
    """The exit code, and what came on standard error."""
    done = subprocess.run(
        ["bash", "-c", command.replace("producer", f"{sys.executable} -m producer")],
        cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=HANG_SECONDS,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("producer db upgrade >&-", 0, "is at revision"),
        ("producer db upgrade <&- >&- 2>&-", 0, ""),
        (f"producer run - --model {TOY_MODEL} <&-", 2, "error: stdin has no prompts"),
        ("producer db upgrade && producer sql <&- >&-", 0, "is at revision"),
        ("producer --version >/dev/full", 2, FULL),
        (f"producer doctor --model {TOY_MODEL} >/dev/full", 2, FULL),
        ("producer db upgrade && producer sql 'select 1' >/dev/full", 2, FULL),
        ("producer db upgrade && producer status >/dev/full", 2, FULL),
    ],
)
def test_a_stream_that_is_closed_or_full(tmp_path: Path, command: str, code: int, said: str) -> None:
    ended, err = of_shell(tmp_path, command)
    assert (ended, err.count("\n")) == (code, err.count("error: ") + err.count("revision")), err
    assert said in err


@pytest.mark.parametrize("command", ["status", "run -p x"])
def test_a_working_directory_that_was_removed_is_told(tmp_path: Path, command: str) -> None:
    script = Path(sys.executable).with_name("producer")  # installed: `python -m` fails before our code does
    done = subprocess.run(
        ["bash", "-c", f'mkdir gone && cd gone && rmdir ../gone && exec "$0" {command}', script],
        cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=HANG_SECONDS,
    )  # fmt: skip
    told = (2, "error: the working directory has been removed; cd to one that is there\n")
    assert (done.returncode, done.stderr) == told


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "2>/dev/full", "2> >(true)"])
def test_a_run_needs_no_streams(tmp_path: Path, producer: Producer, streams: str) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Once", "max_new_tokens": 4}\n')
    assert of_shell(tmp_path, f"producer run prompts.jsonl --model {TOY_MODEL} {streams}") == (0, "")
    (run,) = json.loads(producer("status", "--json").stdout)
    assert (run["state"], run["succeeded"]) == ("finished", 1)


def test_a_submission_is_sent_though_its_id_cannot_be_printed(
    tmp_path: Path, valkey_url: str, valkey_client: Any
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Once"}\n')
    code, err = of_shell(
        tmp_path, f"producer submit prompts.jsonl --model {TOY_MODEL} --broker {valkey_url} >/dev/full"
    )
    assert code == 2 and "1 jobs sent for run" in err and err.endswith(FULL)
    assert valkey_client.dbsize() > 0


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    """As another program of the pipeline may have made it."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    program = "from models.entry_point import prepare_streams; prepare_streams(); print('x' * 1_000_000)"
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    time.sleep(0.5)  # until it is full
    with os.fdopen(ours) as reader:
        assert reader.read() == "x" * 1_000_000 + "\n"
    assert process.communicate()[1] == b"" and process.returncode == 0


@pytest.mark.parametrize(
    "reads", ["sys.stdin.buffer.read()", "b''.join(sys.stdin.buffer)", "''.join(sys.stdin).encode()"]
)
def test_input_that_does_not_block_is_waited_for(reads: str) -> None:
    """A pause of the writer is no end of the file: what came later had been lost without a word."""
    theirs, ours = os.pipe()
    os.set_blocking(theirs, False)
    program = f"import sys; from models.entry_point import prepare_streams; prepare_streams(); print({reads})"
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stdin=theirs, stdout=subprocess.PIPE)
    os.close(theirs)
    with os.fdopen(ours, "wb", buffering=0) as writer:
        for line in (b"one\n", b"two\n"):
            time.sleep(0.5)  # the reader finds nothing
            writer.write(line)
    assert process.communicate()[0] == b"b'one\\ntwo\\n'\n" and process.returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_statements_are_read_in_utf_8(encoding: str, producer: Producer) -> None:
    producer("db", "upgrade")
    found = producer("sql", "--format", "csv", stdin="select 'wörld' as x;", PYTHONIOENCODING=encoding)
    assert found.stdout == 'x\n"wörld"\n'


@pytest.mark.parametrize(
    ("terminal", "environment", "has_frames"),
    [(True, {"TERM": "xterm"}, True), (True, {"TERM": "dumb"}, False), (False, {"FORCE_COLOR": "1"}, False)],
)
def test_frames_are_for_screens(terminal: bool, environment: dict[str, str], has_frames: bool, tmp_path: Path) -> None:
    """Else each of a night's frames is a part of a log, or nothing at all is shown until the end."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Once", "max_new_tokens": 1}\n')
    ours, theirs = os.openpty() if terminal else os.pipe()
    command = [sys.executable, "-m", "producer", "run", str(prompts), "--model", str(TOY_MODEL)]
    variables = clean_environment(**{"TERM": "xterm", **environment})
    process = subprocess.Popen(command, cwd=tmp_path, env=variables, stderr=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    told = b""
    try:
        while read := os.read(ours, 65_536):
            told += read
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    assert (b"\x1b[2K" in told) is has_frames
    assert (b"0 of 1 jobs done" in told) is not has_frames
    assert b"1 succeeded" in told or b"1 of 1 jobs succeeded" in told


def test_a_second_signal_ends_a_run_whose_messages_nobody_takes(tmp_path: Path) -> None:
    """As at a terminal after Ctrl-S, or in a pipe to a `less` that is left open."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Once", "max_new_tokens": 150, "ignore_eos": true}\n')
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    with suppress(BlockingIOError):
        while True:
            os.write(theirs, bytes(4096))
    os.set_blocking(theirs, True)
    command = [sys.executable, "-m", "producer", "run", str(prompts), "--model", str(TOY_MODEL), "--repeat", "2000"]
    run = subprocess.Popen(command, cwd=tmp_path, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    try:
        wait_until(lambda: (tmp_path / ".nocturne" / "nocturne.db").exists())
        time.sleep(3)  # it waits for a reader of its first line
        for _ in range(2):
            run.send_signal(signal.SIGINT)
            time.sleep(1)
        assert run.wait(HANG_SECONDS) == 130
    finally:
        run.kill()
        run.wait()
        os.close(ours)


def test_control_c_where_the_reader_of_messages_gets_it_too(tmp_path: Path, producer: Producer) -> None:
    """As in `producer run … 2>&1 | tee log`."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Once", "max_new_tokens": 150, "ignore_eos": true}\n')
    with CommandProcess("producer", ["run", prompts, "--model", TOY_MODEL, "--repeat", 2_000], tmp_path) as run:
        run.read_until("loading the model")
        assert run.process.stdout is not None
        run.process.stdout.close()
        run.signal(signal.SIGINT)
        assert run.process.wait() == 130
    (stored,) = json.loads(producer("status", "--json").stdout)
    assert stored["state"] in ("queued", "interrupted") and stored["running"] == 0
