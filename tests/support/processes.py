"""Starting and ending the processes that tests talk to."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Thread
from typing import IO, Any, Self

import psutil
from redis import Redis

from producer.runs.valkey import server_executable
from tests.support.command_server import CommandServer

ROOT = Path(__file__).parents[2]

#: Only a hang takes so long, on a loaded machine too.
HANG_SECONDS = 300.0


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without settings of ours, with the code on the path and few threads."""
    ours = ("NOCTURNE_", "TRITON_INTERPRET")  # the interpreter is for kernels in the tests' own process
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")]))
    return {**kept, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200", **extra}


def run_producer(
    cwd: Path, *arguments: Any, exit_code: int = 0, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the `producer` command to its end; fails the test unless it ends with that exit code.

    A variable of others may be read while modules are imported, so it needs a new Python.
    """
    command = list(map(str, arguments))
    variables = clean_environment(**environment)
    if all(name.startswith("NOCTURNE_") for name in environment):
        done = _command_server().run(command, cwd, variables, stdin, HANG_SECONDS)
    else:
        done = subprocess.run(
            [sys.executable, "-m", "producer", *command],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=cwd,
            env=variables,
            timeout=HANG_SECONDS,
        )
    assert done.returncode == exit_code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@cache
def _command_server() -> CommandServer:
    """The one of this test process."""
    return CommandServer(clean_environment())


class RedisServer:
    """The server that `producer run` embeds (Valkey), on a Unix socket."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options = options
        self.socket = folder / "redis.sock"
        self.url = f"redis+socket://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def client(self) -> Redis:
        return Redis(unix_socket_path=str(self.socket))

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        options += self.options
        self._process = subprocess.Popen(
            [server_executable(), *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if b"Ready to accept connections" in line:
                return
        raise AssertionError("the Redis server ended at its start")

    def kill(self) -> None:
        """Ends it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.communicate()
        self._process = None

    def lose_data(self) -> None:
        """Removes what it wrote, while it is off: it comes back empty."""
        written = [*self.folder.glob("appendonly*"), *self.folder.glob("*.rdb")]
        assert written
        for path in written:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        self._process.communicate()
        self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


class CommandProcess:
    """A command that runs beside the test; its output is read as it comes."""

    def __init__(self, module: str, arguments: Sequence[Any], cwd: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            env=clean_environment(PYTHONUNBUFFERED="1", **environment),
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader: Thread | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    def read_in_background(self) -> None:
        """From now on its output is read as it comes, so that a full pipe never stops it."""
        self._reader = Thread(target=self._read_on, daemon=True)
        self._reader.start()

    def _read_on(self) -> None:
        assert self.process.stdout is not None
        self.lines += self.process.stdout

    def read_until(self, wanted: str) -> str:
        """Waits for a line that holds the text; pytest's timeout bounds it."""
        stdout: IO[str] | None = self.process.stdout
        assert stdout is not None
        for line in stdout:
            self.lines.append(line)
            if wanted in line:
                return line
        raise AssertionError(f"the process ended without saying {wanted!r}:\n{''.join(self.lines)}")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def finish(self) -> int:
        """Reads the rest of the output; returns the exit code."""
        if self._reader is not None:
            self._reader.join()
            return self.process.wait()
        rest, _ = self.process.communicate()
        self.lines.append(rest)
        return self.process.returncode

    def kill_all(self) -> None:
        """Kills the process and everything it started, as a power cut would."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self._reader is not None:
            self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill_all()


class WorkerProcess(CommandProcess):
    """`worker start`, ready for work when constructed, or after `await_ready` where that was asked."""

    def __init__(
        self, *arguments: Any, cwd: Path, module: str = "worker", is_awaited: bool = True, **environment: str
    ) -> None:
        settings = {"NOCTURNE_NUM_THREADS": "1", "NOCTURNE_HEARTBEAT_SECONDS": "0.2", **environment}
        super().__init__(module, ["start", "--devices", "cpu", *arguments], cwd, **settings)
        self._last_pid = self.process.pid
        if is_awaited:
            self.await_ready()

    def await_ready(self) -> None:
        try:
            self.read_until(" serves ")
        except BaseException:  # pytest's own end of a test is no Exception
            self.kill_all()
            raise
        self.read_in_background()

    @property
    def pid(self) -> int:
        """The process that works; its parent, `process`, starts it again. The last one while there is none."""
        found = [child.pid for child in _children(self.process.pid)]
        self._last_pid = found[0] if found else self._last_pid
        return self._last_pid

    def signal(self, number: int) -> None:
        """Signals to end go to the parent, those that a process cannot handle to the one that works."""
        if number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL):
            os.kill(self.pid, number)
        else:
            self.process.send_signal(number)

    @property
    def engine(self) -> psutil.Process:
        """The process that decodes."""
        (engine,) = self.children()
        return engine

    def children(self) -> list[psutil.Process]:
        """Its engine processes: one, or none while it is being started."""
        return [child for child in _children(self.pid) if "spawn_main" in command_line(child)]


def _children(pid: int) -> list[psutil.Process]:
    """None of a process that has ended."""
    try:
        return list(psutil.Process(pid).children())
    except psutil.NoSuchProcess:
        return []


def command_line(process: psutil.Process) -> str:
    """The words of a process's command; empty for one that has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def free_port() -> int:
    """A local port for a server that is told its number: none of those that the kernel gives to others meanwhile."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)  # Linux gives away those from 32768 on
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], bool], seconds: float = HANG_SECONDS, interval: float = 0.02) -> None:
    """Polls until the condition holds; only a hang takes as long as `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(interval)
