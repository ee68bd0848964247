"""Standard streams that are closed or full: the work is done without them, or a line says why not; exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TOY_MODEL, Producer
from tests.support.processes import HANG_SECONDS, clean_environment

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


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "2>/dev/full"])
def test_a_run_needs_no_streams(tmp_path: Path, producer: Producer, streams: str) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Once", "max_new_tokens": 4}\n')
    assert of_shell(tmp_path, f"producer run prompts.jsonl --model {TOY_MODEL} {streams}") == (0, "")
    (run,) = json.loads(producer("status", "--json").stdout)
    assert (run["state"], run["succeeded"]) == ("finished", 1)
