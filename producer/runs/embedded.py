"""The embedded default: a Redis server (Valkey), SQLite and one worker, all in the `--home` folder.

`LocalServices` is a context manager: it ends the processes that a killed producer left behind, and at its own end those
that it has started. One producer at a time decodes in a home; another one waits.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psutil
from redis import Redis
from redis.exceptions import RedisError

from models.child_process import child_environment, end_with_parent, worker_command
from models.settings import Settings
from producer.console import say
from producer.errors import UsageError
from producer.home import HomeLock, note_processes, noted_processes, remove_noted
from producer.private_files import keep_folder_private, lines_from, make_home, open_private
from producer.redis_socket import RedisSocket, running_socket
from producer.runs.interruption import Interruption
from producer.runs.valkey import server_executable

START_SECONDS = 20.0
STOP_SECONDS = 15.0  # beyond the grace of running answers
POLL_SECONDS = 0.05
WORKER_NAME = "local"
GRACE_SECONDS = 5.0  # a person waits for it
APPEND_ONLY_FOLDER, OLD_APPEND_ONLY = "appendonlydir", "redis.aof"  # the second is that of Redis 6
PRIVATE_UMASK = 0o077


def embedded_broker(settings: Settings) -> str | None:
    """The URL of the embedded Redis, while a `producer run` runs in the same home."""
    socket = running_socket(settings.home.absolute())
    return _url(socket) if socket is not None else None


def _url(socket: Path) -> str:
    """The URL of a Redis at a socket, quoted: a number sign, a question mark or a line end would end its path."""
    return f"redis+socket://{quote(str(socket))}"


class LocalServices:
    """Redis and a worker of our own, for the time of one command."""

    def __init__(self, settings: Settings, interruption: Interruption | None = None) -> None:
        self._home = settings.home.absolute()
        self.interruption = interruption or Interruption()
        self._redis: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._log_begin = 0  # the byte of the worker's log at which its own lines begin
        self._lock = HomeLock(self._home)
        self._redis_socket = RedisSocket(self._home)
        self._socket = self._redis_socket.path
        self.worker_name = settings.worker_name or WORKER_NAME
        has_grace = "grace_seconds" in settings.model_fields_set
        self.settings = settings.model_copy(
            update={
                "broker": settings.broker or _url(self._socket),
                "database": settings.database_url,
                "grace_seconds": settings.grace_seconds if has_grace else GRACE_SECONDS,
                "worker_name": self.worker_name,
            }
        )
        self._has_own_redis = settings.broker is None

    def __enter__(self) -> Self:
        make_home(self._home)  # prompts and answers are private
        self._lock.acquire(self.interruption.checked_sleep)
        try:
            self._stop_leftovers()
            if self._has_own_redis:
                self._start_redis()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self.stop_worker()
        if self._redis is not None:
            self._stop(self._redis, STOP_SECONDS)
        remove_noted(self._pid_file)
        self._redis_socket.remove()
        self._lock.release()

    def note_run(self, run_id: str) -> None:
        """Says which run is decoded here, for those who wait and for `producer status`."""
        self._lock.note_run(run_id)

    def stop_worker(self) -> None:
        """Ends the worker: its running answers have their grace, and none after a further signal."""
        if self._worker is not None:
            self._stop(self._worker, self.settings.grace_seconds + STOP_SECONDS)

    def purge_queue(self) -> None:
        """Empties our own Redis: every unfinished job is about to be sent again. Raises `UsageError`."""
        if not self._has_own_redis:
            return
        try:
            with Redis(unix_socket_path=str(self._socket)) as client:
                client.flushall()
        except RedisError as error:
            raise UsageError(f"the embedded Redis takes nothing: {error}; see {self._home / 'redis.log'}") from error

    def start_worker(self) -> None:
        """Starts the worker; it loads its model while the caller goes on."""
        environment = {
            **child_environment(os.environ),
            **{
                f"NOCTURNE_{name.upper()}": str(value)
                for name, value in self.settings.model_dump(exclude_none=True).items()
            },
            "NOCTURNE_PARENT_PID": str(os.getpid()),
        }
        # A session of its own, so that a Ctrl-C at the terminal reaches the producer alone.
        command = worker_command("start", "--devices", self.settings.device)
        with open_private(self._home / "worker.log", "ab") as log:
            self._log_begin = os.fstat(log.fileno()).st_size
            self._worker = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=end_with_parent(),
            )  # fmt: skip
        self._note_processes()

    def check_worker(self) -> None:
        """Raises `UsageError` with the last lines of the worker's log if the worker has ended."""
        if self._worker is None or (code := self._worker.poll()) is None:
            return
        path = self._home / "worker.log"
        lines = lines_from(path, self._log_begin)
        own = [line.removeprefix("worker: ") for line in lines if line.startswith("worker: ")]
        reason = own[-1] if own else "\n".join(lines[-5:]) or f"without a word in {path}"
        raise UsageError(f"the worker ended with exit code {code}: {reason}")

    @property
    def _pid_file(self) -> Path:
        return self._home / "processes.json"

    def _stop_leftovers(self) -> None:
        """Kills the processes that a killed producer left behind."""
        for process in noted_processes(self._pid_file):
            with suppress(psutil.Error):
                processes = [process, *process.children(recursive=True)]
                for each in processes:
                    each.kill()
                psutil.wait_procs(processes, timeout=STOP_SECONDS)
        remove_noted(self._pid_file)

    def _start_redis(self) -> None:
        """Starts Redis, once more without its append-only file where it cannot go on from that."""
        self._redis_socket.make()
        try:
            self._launch_redis()
        except UsageError:
            if self._redis is None or not self._drop_append_only():
                raise
            say("the embedded Redis did not start with its append-only file, which is removed; its jobs are sent again")
            self._launch_redis()

    def _drop_append_only(self) -> bool:
        """Removes the append-only file, if there is one: each run sends its jobs again from the database."""
        left = [path for path in (self._home / APPEND_ONLY_FOLDER, self._home / OLD_APPEND_ONLY) if path.exists()]
        if left and self._redis is not None:
            self._stop(self._redis, STOP_SECONDS)
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return bool(left)

    def _launch_redis(self) -> None:
        keep_folder_private(self._home / APPEND_ONLY_FOLDER)
        options = {
            "port": "0", "unixsocket": str(self._socket), "unixsocketperm": "600", "dir": str(self._home),
            "appendonly": "yes", "appendfilename": "redis.aof", "save": "", "daemonize": "no",
        }  # fmt: skip
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        try:
            with open_private(self._home / "redis.log", "ab") as log:
                self._redis = subprocess.Popen(
                    [server_executable(), *arguments], stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                    preexec_fn=end_with_parent(), umask=PRIVATE_UMASK,
                )  # fmt: skip
        except OSError as error:
            raise UsageError(f"the embedded Redis server does not run: {error}; give --broker for a server") from error
        self._note_processes()
        self._await_redis()

    def _await_redis(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._redis is not None
            if self._redis.poll() is not None:
                raise UsageError(f"the embedded Redis server ended at its start; see {self._home / 'redis.log'}")
            try:
                with Redis(unix_socket_path=str(self._socket)) as client:
                    client.ping()
                    return
            except RedisError:
                self.interruption.checked_sleep(0.02)
        raise UsageError(f"the embedded Redis server does not answer; see {self._home / 'redis.log'}")

    def _stop(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        """Asks a process to end, and kills it and its children when the time is over or a further signal comes."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline and self.interruption.num_signals < 2:
            self.interruption.sleep(POLL_SECONDS)
        self.interruption.tell()  # of one that came outside of the sleep
        with suppress(ProcessLookupError):  # its children are of its session, and may outlive it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _note_processes(self) -> None:
        note_processes(self._pid_file, [process.pid for process in (self._redis, self._worker) if process is not None])
