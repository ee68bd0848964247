"""Runs `producer` commands in processes forked from one that has imported them.

A command spends most of its time on imports, and the tests run hundreds. Each is a process as real as a new one: its
own environment, folder, streams and exit code. Signals, import paths and variables that are read on import are tested
with new processes instead.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import pkgutil
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

PACKAGES = ("models", "migrations", "producer")
NOT_IMPORTED = ("migrations.env", "producer.__main__")  # they run when imported
LIBRARIES = ("numpy", "tokenizers")  # of those that ours import only when needed

#: Bytes of one request: arguments, folder and environment.
MAX_REQUEST = 200_000


class CommandServer:
    """The tests' side. The server ends with the process that started it, which holds its standard input open."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="commands-")
        self._address = str(Path(self._folder.name) / "socket")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.command_server", self._address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        atexit.register(self.stop)

    def run(
        self, arguments: list[str], cwd: Path, environment: dict[str, str], stdin: str, seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Runs `producer` with the arguments to its end, or kills it after so many seconds."""
        request = json.dumps({"arguments": arguments, "cwd": str(cwd), "environment": environment}).encode()
        assert len(request) < MAX_REQUEST
        (its_in, our_in), (our_out, its_out), (our_err, its_err) = os.pipe(), os.pipe(), os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client, ThreadPoolExecutor(3) as streams:
            client.connect(self._address)
            socket.send_fds(client, [request], [its_in, its_out, its_err])
            for descriptor in (its_in, its_out, its_err):
                os.close(descriptor)
            pid = int(client.recv(64))
            streams.submit(_write, our_in, stdin)
            out, err = streams.submit(_read, our_out), streams.submit(_read, our_err)
            client.settimeout(seconds)
            try:
                code = int(client.recv(64))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(["producer", *arguments], seconds) from None
            return subprocess.CompletedProcess(["producer", *arguments], code, out.result(), err.result())

    def stop(self) -> None:
        """Ends the server; a command that still runs goes on."""
        self._process.communicate()
        self._folder.cleanup()


def _write(descriptor: int, text: str) -> None:
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
    except BrokenPipeError:
        pass  # the command did not want it


def _read(descriptor: int) -> str:
    with os.fdopen(descriptor, encoding="utf-8") as stream:
        return stream.read()


def serve(address: str) -> None:
    """Forks a process for each request until standard input is closed. Returns in none of them."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
            if module.name not in NOT_IMPORTED:
                import_module(module.name)
    for library in LIBRARIES:
        import_module(library)
    gc.freeze()  # a collection in a forked process would copy every page
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # none is waited for here
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        os.write(1, b"ready\n")
        while listener.fileno() in select.select([listener.fileno(), 0], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                request, descriptors, _, _ = socket.recv_fds(connection, MAX_REQUEST, 3)
                if os.fork() == 0:
                    _run_and_report(json.loads(request), descriptors, connection, listener)
                for descriptor in descriptors:
                    os.close(descriptor)


def _run_and_report(
    request: dict[str, Any], descriptors: list[int], connection: socket.socket, listener: socket.socket
) -> None:
    """The process between the server and the command: it waits for the command's end."""
    listener.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    command = os.fork()
    if command == 0:
        connection.close()
        _become(request, descriptors)
    for descriptor in (0, 1, 2, *descriptors):
        os.close(descriptor)
    connection.send(str(command).encode())
    _, status = os.waitpid(command, 0)
    connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Makes this process the command, as if Python had just been started for it; ends it."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    random.seed()
    sys.argv = ["producer", *request["arguments"]]
    sys.path[0] = ""
    runpy.run_module("producer", run_name="__main__", alter_sys=True)
    raise SystemExit


if __name__ == "__main__":
    serve(sys.argv[1])
