"""The commands of a worker end in one line where an option is wrong, or a database refuses them."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from tests.conftest import TOY_MODEL
from worker import cli
from worker.storage.registry import Registry


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


def test_a_database_that_refuses_a_drain_is_told_in_a_line(sqlite_database: Engine) -> None:
    Registry(sqlite_database, "w", 30.0).register(host="here", device="cpu", model="m", max_num_seqs=1)
    with sqlite_database.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE UPDATE ON workers BEGIN SELECT RAISE(ABORT, 'not allowed'); END"
        )
    url = sqlite_database.url.render_as_string(hide_password=False)
    done = CliRunner().invoke(cli.app, ["drain", "w", "--database", url])
    assert done.exit_code == 2 and len(done.output.splitlines()) == 1, done.output
    assert "not allowed" in done.output
