"""Names whose lookup hangs: it ends in its time, and a signal ends the command or the worker that waits for it."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from threading import Event

import psutil
import pytest
from sqlalchemy import Engine

from models import name_lookup
from tests.support.processes import CommandProcess, wait_until

URL = "postgresql+psycopg://user@never.answered/nocturne"


def test_a_lookup_ends_in_its_time_and_passes_answers_and_errors_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_lookup.look_up("127.0.0.1", 80, type=socket.SOCK_STREAM)[0][4] == ("127.0.0.1", 80)
    with pytest.raises(socket.gaierror):
        name_lookup.look_up("not a name", 80)
    monkeypatch.setattr(name_lookup, "LOOKUP_SECONDS", 0.05)
    monkeypatch.setattr(name_lookup, "_look_up", lambda *_, **__: Event().wait())
    with pytest.raises(OSError, match=r"the name 'never.answered' was not looked up within 0.05 s"):
        name_lookup.look_up("never.answered", 80)


def start(folder: Path, *arguments: object) -> CommandProcess:
    return CommandProcess("tests.nights.connections.hanging_names", arguments, folder)


def test_a_command_ends_in_one_line(tmp_path: Path) -> None:
    command = start(tmp_path, "producer", 0.2, "status", "--database", URL)
    assert command.finish() == 2
    told = "".join(command.lines)
    assert "was not looked up within 0.2 s" in told and "Traceback" not in told


def test_an_interrupted_command_ends_at_once(tmp_path: Path) -> None:
    command = start(tmp_path, "producer", 3600, "status", "--database", URL)
    wait_until(lambda: len(psutil.Process(command.pid).threads()) > 1)  # it looks the name up
    command.signal(signal.SIGINT)
    assert command.finish() == 130


@pytest.mark.long
def test_a_worker_that_looks_for_redis_ends_on_a_signal(tmp_path: Path, sqlite_database: Engine) -> None:
    """The name may be there later: it is waited for, told once."""
    url = sqlite_database.url.render_as_string(hide_password=False)
    options = ["--devices", "cpu", "--model", "toy", "--database", url, "--broker", "redis://never.answered:6379/0"]
    worker = start(tmp_path, "worker", 0.2, "start", *options)
    worker.read_until("Redis does not answer")
    working = psutil.Process(worker.pid).children()
    worker.signal(signal.SIGTERM)
    assert worker.finish() == 0
    assert not any(psutil.pid_exists(child.pid) for child in working)
    told = "".join(worker.lines)
    assert told.count("was not looked up") == 1 and "Traceback" not in told
