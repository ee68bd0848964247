"""The embedded default: a Redis server (Valkey), SQLite and one worker, all in the `--home` folder.

`LocalServices` is a context manager: what it started it stops, and what an earlier, killed one left behind
is stopped before.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import tempfile
import time
import zlib
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine, update

from models.child_process import child_environment, worker_command
from models.schema.job import Job
from models.settings import Settings
from models.states import JobState
from producer.errors import UsageError
from producer.runs.valkey import server_executable

START_SECONDS = 20.0
STOP_SECONDS = 15.0
MAX_SOCKET_PATH = 90  # Unix socket paths end at about 107 bytes


def embedded_broker(settings: Settings) -> str | None:
    """The URL of the embedded Redis, while a `producer run` runs in the same home."""
    socket = _socket_path(settings.home.absolute())
    return f"redis+socket://{socket}" if socket.exists() else None


class LocalServices:
    """Redis and a worker of our own, for the time of one command."""

    def __init__(self, settings: Settings) -> None:
        self._home = settings.home.absolute()
        self._redis: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._socket = _socket_path(self._home)
        self.settings = settings.model_copy(
            update={
                "broker": settings.broker or f"redis+socket://{self._socket}",
                "database": settings.database_url,
            }
        )
        self._has_own_redis = settings.broker is None

    def __enter__(self) -> Self:
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts and answers are private
        self._take_lock()
        self._stop_leftovers()
        if self._has_own_redis:
            self._start_redis()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (self._worker, self._redis):
            if process is not None:
                _stop(process)
        self._pid_file.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()

    def return_interrupted(self, database: Engine, run_id: str) -> None:
        """Puts the jobs of an interrupted run in the outbox: those a worker left, and those whose messages it had."""
        self._purge_queue()
        with database.begin() as connection:
            connection.execute(
                update(Job)
                .where(Job.run_id == run_id, Job.state.in_([JobState.QUEUED, JobState.RUNNING]))
                .values(state=JobState.QUEUED, state_reason="interrupted", sent_at=None, lease_expires_at=None)
            )

    def start_worker(self) -> None:
        """Starts the worker; it loads its model while the caller goes on."""
        environment = {
            **child_environment(os.environ),
            **{
                f"NOCTURNE_{name.upper()}": str(value)
                for name, value in self.settings.model_dump(exclude_none=True).items()
            },
            "NOCTURNE_PARENT_PID": str(os.getpid()),
            "NOCTURNE_WORKER_NAME": self.settings.worker_name or "local",
        }
        log = (self._home / "worker.log").open("ab")
        # A session of its own, so that a Ctrl-C at the terminal reaches the producer alone.
        command = worker_command("start", "--devices", self.settings.device)
        self._worker = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        log.close()
        self._note_processes()

    def check_worker(self) -> None:
        """Raises `UsageError` with the last lines of the worker's log if the worker has ended."""
        if self._worker is None or (code := self._worker.poll()) is None:
            return
        lines = (self._home / "worker.log").read_text(errors="replace").strip().splitlines()
        own = [line.removeprefix("worker: ") for line in lines if line.startswith("worker: ")]
        reason = own[-1] if own else "\n".join(lines[-5:])
        raise UsageError(f"the worker ended with exit code {code}: {reason}")

    @property
    def _pid_file(self) -> Path:
        return self._home / "processes.json"

    def _take_lock(self) -> None:
        self._lock = (self._home / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another producer is running in {self._home}; wait for it, or give another --home"
            ) from None

    def _stop_leftovers(self) -> None:
        """Kills the processes that a killed producer left behind."""
        if not self._pid_file.exists():
            return
        for pid, created in json.loads(self._pid_file.read_text()):
            try:
                process = psutil.Process(pid)
                if abs(process.create_time() - created) < 1:  # else another process has the number now
                    processes = [process, *process.children(recursive=True)]
                    for each in processes:
                        each.kill()
                    psutil.wait_procs(processes, timeout=STOP_SECONDS)
            except psutil.NoSuchProcess:
                continue
        self._pid_file.unlink()

    def _start_redis(self) -> None:
        options = {
            "port": "0", "unixsocket": str(self._socket), "unixsocketperm": "600", "dir": str(self._home),
            "appendonly": "yes", "appendfilename": "redis.aof", "save": "", "daemonize": "no",
        }  # fmt: skip
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        log = (self._home / "redis.log").open("ab")
        self._redis = subprocess.Popen(
            [server_executable(), *arguments], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        log.close()
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
                time.sleep(0.02)
        raise UsageError(f"the embedded Redis server does not answer; see {self._home / 'redis.log'}")

    def _purge_queue(self) -> None:
        """Empties our own Redis: every unfinished job is about to be sent again."""
        if self._has_own_redis:
            with Redis(unix_socket_path=str(self._socket)) as client:
                client.flushall()

    def _note_processes(self) -> None:
        running = [process for process in (self._redis, self._worker) if process is not None]
        noted = [(process.pid, psutil.Process(process.pid).create_time()) for process in running]
        self._pid_file.write_text(json.dumps(noted))


def _socket_path(home: Path) -> Path:
    path = home / "redis.sock"
    if len(str(path)) <= MAX_SOCKET_PATH:
        return path
    folder = Path(tempfile.gettempdir()) / f"nocturne-{os.getuid()}-{zlib.crc32(str(home).encode()):x}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / "redis.sock"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks a process to end, and kills it if it does not."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()
