"""Commands run in a folder full of Python files that have the names of what the product imports: none is executed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TOY_MODEL
from tests.support.processes import HANG_SECONDS, clean_environment, wait_until

#: Every name that an import may look for: the standard library, all that is installed, and optional modules.
MODULE_NAMES = {
    *sys.stdlib_module_names, *filter(str.isidentifier, packages_distributions()),
    "producer", "worker", "models", "migrations", "sitecustomize", "usercustomize", "celeryconfig",
}  # fmt: skip

#: A few that Python does not need itself before it runs a command.
PRODUCT_NAMES = {
    "producer", "worker", "models", "migrations", "celery", "alembic", "sqlalchemy", "torch", "transformers",
    "queue", "logging", "multiprocessing", "sitecustomize",
}  # fmt: skip

#: Notes its execution, then gives way to the real module.
TRAP = """\
import os, sys
folder = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(folder, "executed.txt"), "a") as file:
    file.write(f"{os.getpid()} {__name__}\\n")
path = sys.path[:]
sys.path[:] = [entry for entry in path if os.path.abspath(entry) != folder]
del sys.modules[__name__]
try:
    __import__(__name__)
finally:
    sys.path[:] = path
"""


class StrangeDirectory:
    """A working directory with traps; commands are run by their installed entry points."""

    def __init__(self, folder: Path, names: Iterable[str], python_path: str) -> None:
        self.folder = folder
        for name in names:
            (folder / f"{name}.py").write_text(TRAP)
        lines = [{"custom_id": f"{n}", "prompt": f"Story {n}", "max_new_tokens": 4} for n in range(8)]
        (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
        self._environment = {
            **clean_environment(NOCTURNE_MODEL=str(TOY_MODEL), NOCTURNE_NUM_THREADS="1"),
            "PYTHONPATH": python_path,
        }
        self.command_pids: set[int] = set()

    def run(self, *arguments: Any, exit_code: int = 0) -> str:
        """Runs a command to its end; returns its standard output."""
        process = self._start(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output, errors = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == exit_code, f"exit code {process.returncode}\n{output}\n{errors}"
        return str(output)

    @contextmanager
    def running(self, *arguments: Any, ready: str, times: int = 1) -> Iterator[None]:
        """A command that runs from its ready lines until SIGTERM, and ends with 0."""
        log = self.folder / "log.txt"
        with log.open("w") as file:
            process = self._start(arguments, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            wait_until(lambda: process.poll() is not None or log.read_text().count(ready) == times)
            assert process.poll() is None, log.read_text()
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=HANG_SECONDS) == 0, log.read_text()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def executed(self) -> list[tuple[int, str]]:
        """The process id and the name of every trap that was executed."""
        path = self.folder / "executed.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(pid), name) for pid, name in map(str.split, lines)]

    def _start(self, arguments: tuple[Any, ...], **options: Any) -> subprocess.Popen[str]:
        command, *rest = map(str, arguments)
        entry_point = Path(sys.executable).with_name(command)
        process = subprocess.Popen([entry_point, *rest], cwd=self.folder, env=self._environment, text=True, **options)
        self.command_pids.add(process.pid)
        return process


def test_a_local_run_executes_nothing_of_the_working_directory(tmp_path: Path) -> None:
    here = StrangeDirectory(tmp_path, MODULE_NAMES, python_path="")
    here.run("producer", "run", "prompts.jsonl", "--name", "local")
    here.run("producer", "sql", "select count(*) from job_results")
    here.run("producer", "report", "-o", "report.html")
    assert here.executed() == []


@pytest.mark.parametrize(("devices", "num_workers"), [("cpu", 1), pytest.param("cpu,cpu", 2, marks=pytest.mark.long)])
def test_a_queue_and_its_workers_execute_nothing_of_the_working_directory(
    tmp_path: Path, broker: str, devices: str, num_workers: int
) -> None:
    here = StrangeDirectory(tmp_path, MODULE_NAMES, python_path="")
    queue = ["--database", f"sqlite:///{tmp_path / 'queue.db'}", "--broker", broker]
    here.run("producer", "db", "upgrade", *queue[:2])
    with here.running("worker", "start", "--devices", devices, *queue, ready=" serves ", times=num_workers):
        here.run("producer", "submit", "prompts.jsonl", *queue)
        here.run("producer", "status", "--watch", *queue[:2])
        assert " on cpu serves " in here.run("producer", "doctor", *queue)
    assert len(here.run("producer", "results", *queue[:2]).splitlines()) == 8
    assert here.executed() == []


@pytest.mark.parametrize(
    ("python_path", "is_run_too"), [pytest.param(".", True, marks=pytest.mark.long), ("/nowhere::/nowhere", False)]
)
def test_children_do_not_inherit_a_pythonpath_with_the_working_directory(
    tmp_path: Path, broker: str, python_path: str, is_run_too: bool
) -> None:
    """Python itself lets the command's own process import from there; the processes that it starts do not."""
    here = StrangeDirectory(tmp_path, PRODUCT_NAMES, python_path)
    if is_run_too:
        here.run("producer", "run", "prompts.jsonl")
    database = ["--database", f"sqlite:///{tmp_path / 'queue.db'}"]
    here.run("producer", "db", "upgrade", *database)
    with here.running("worker", "start", "--devices", "cpu", *database, "--broker", broker, ready=" serves "):
        pass
    executed = here.executed()
    assert {"producer", "worker", "models"} <= {name for pid, name in executed if pid in here.command_pids}
    assert [name for pid, name in executed if pid not in here.command_pids] == []
