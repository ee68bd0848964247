"""Options of `worker start` that are wrong end it before a process of its own starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import TOY_MODEL
from worker import cli


class NoGroup:
    """Stands in for the group of a worker that must not start, or that may."""

    def __init__(self, *arguments: object) -> None: ...

    def run(self) -> int:
        return 77


@pytest.mark.parametrize(("level", "code"), [("loud", 2), ("10", 2), ("debug", 77), ("WARNING", 77)])
def test_a_log_level_that_there_is_not_is_refused(
    level: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "WorkerGroup", NoGroup)
    monkeypatch.setattr("os.environ", {"PATH": "", "HOME": str(tmp_path)})
    options = ["start", "--devices", "cpu", "--model", str(TOY_MODEL), "--home", str(tmp_path), "--log-level", level]
    done = CliRunner().invoke(cli.app, options)
    assert done.exit_code == code, done.output
    if code == 2:
        assert done.output == f"worker: --log-level: must be DEBUG, INFO, WARNING or ERROR, got {level!r}\n"
