"""The embedded default: a Redis server (Valkey), SQLite and one worker, all in the `--home` folder.

`LocalServices` is a context manager: what it started it stops, and what an earlier, killed one left behind
is stopped before. One at a time decodes in a home; another one waits.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import tempfile
import time
import zlib
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine, or_, update

from models.child_process import child_environment, worker_command
from models.database.clock import database_timestamp
from models.schema.job import Job, rows_to_change
from models.schema.worker import Worker
from models.settings import Settings
from models.states import JobState
from producer.errors import UsageError
from producer.home import HomeLock
from producer.runs.child_signals import end_with_parent
from producer.runs.interruption import Interruption
from producer.runs.valkey import server_executable

START_SECONDS = 20.0
STOP_SECONDS = 15.0  # beyond the grace of running answers
POLL_SECONDS = 0.05
WORKER_NAME = "local"
GRACE_SECONDS = 5.0  # a person waits for it
MAX_SOCKET_PATH = 90  # Unix socket paths end at about 107 bytes


def embedded_broker(settings: Settings) -> str | None:
    """The URL of the embedded Redis, while a `producer run` runs in the same home."""
    socket = _socket_path(settings.home.absolute())
    return f"redis+socket://{socket}" if socket.exists() else None


class LocalServices:
    """Redis and a worker of our own, for the time of one command."""

    def __init__(self, settings: Settings, interruption: Interruption | None = None) -> None:
        self._home = settings.home.absolute()
        self.interruption = interruption or Interruption()
        self._redis: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._lock = HomeLock(self._home)
        self._socket = _socket_path(self._home)
        has_grace = "grace_seconds" in settings.model_fields_set
        self.settings = settings.model_copy(
            update={
                "broker": settings.broker or f"redis+socket://{self._socket}",
                "database": settings.database_url,
                "grace_seconds": settings.grace_seconds if has_grace else GRACE_SECONDS,
                "worker_name": settings.worker_name or WORKER_NAME,
            }
        )
        self._has_own_redis = settings.broker is None

    def __enter__(self) -> Self:
        try:
            self._home.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts and answers are private
        except OSError as error:
            raise UsageError(f"cannot make the home {self._home}: {error.strerror}; give another --home") from error
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
        self._pid_file.unlink(missing_ok=True)
        self._socket.unlink(missing_ok=True)
        self._lock.release()

    def note_run(self, run_id: str) -> None:
        """Says which run is decoded here, for those who wait and for `producer status`."""
        self._lock.note_run(run_id)

    def stop_worker(self) -> None:
        """Ends the worker: its running answers have their grace, and none after a further signal."""
        if self._worker is not None:
            self._stop(self._worker, self.settings.grace_seconds + STOP_SECONDS)

    def return_running(self, database: Engine, run_id: str) -> None:
        """Queues the jobs again that a worker which was killed at its end left running, and signs it off."""
        self.stop_worker()
        name = self.settings.worker_name or WORKER_NAME
        mine = or_(Job.worker == name, Job.worker.startswith(f"{name}-", autoescape=True))
        its_row = or_(Worker.name == name, Worker.name.startswith(f"{name}-", autoescape=True))
        with database.begin() as connection:
            connection.execute(
                update(Job)
                .where(rows_to_change(Job.run_id == run_id, Job.state == JobState.RUNNING, mine))
                .values(state=JobState.QUEUED, state_reason="interrupted", sent_at=None, lease_expires_at=None)
            )
            connection.execute(
                update(Worker)
                .where(its_row, Worker.host == platform.node(), Worker.stopped_at.is_(None))
                .values(stopped_at=database_timestamp())
            )

    def return_interrupted(self, database: Engine, run_id: str) -> None:
        """Puts the jobs of an interrupted run in the outbox: those a worker left, and those whose messages it had."""
        self._purge_queue()
        unsent = {"sent_at": None, "lease_expires_at": None}
        with database.begin() as connection:
            of_run = update(Job).where(Job.run_id == run_id)
            connection.execute(of_run.where(Job.state == JobState.QUEUED, Job.sent_at.is_not(None)).values(unsent))
            running = of_run.where(Job.state == JobState.RUNNING)
            connection.execute(running.values(state=JobState.QUEUED, state_reason="interrupted", **unsent))

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
        log = (self._home / "worker.log").open("ab")
        # A session of its own, so that a Ctrl-C at the terminal reaches the producer alone.
        command = worker_command("start", "--devices", self.settings.device)
        self._worker = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=end_with_parent(),
        )  # fmt: skip
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
            [server_executable(), *arguments], stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=end_with_parent(),
        )  # fmt: skip
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
                self.interruption.checked_sleep(0.02)
        raise UsageError(f"the embedded Redis server does not answer; see {self._home / 'redis.log'}")

    def _purge_queue(self) -> None:
        """Empties our own Redis: every unfinished job is about to be sent again."""
        if self._has_own_redis:
            with Redis(unix_socket_path=str(self._socket)) as client:
                client.flushall()

    def _stop(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        """Asks a process to end, and kills it and its children when the time is over or a further signal comes."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline and self.interruption.num_signals < 2:
            self.interruption.sleep(POLL_SECONDS)
        with suppress(ProcessLookupError):  # its children are of its session, and may outlive it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

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
