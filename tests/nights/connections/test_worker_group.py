"""The parent that starts workers again: it restarts what dies, ends what cannot start, and leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from migrations.upgrade import upgrade
from models.database.connection import open_database
from models.database.outbox import send_outbox
from models.schema.run import Run
from models.settings import Settings
from models.states import RunState
from tests.support.processes import HANG_SECONDS, CommandProcess, WorkerProcess, clean_environment, wait_until
from tests.support.table_rows import column_of, insert_run
from worker.celery import create_app, send_chunk
from worker.signals import Stopping

#: A group of one member, or of two, whose behavior is the first argument; their starts are counted in a file.
PROGRAM = '''
"""A worker group whose member only waits."""
import os, signal, sys, time
from pathlib import Path
from worker import worker_group

worker_group.RESTART_SECONDS = (0.05,)
worker_group.KILL_SECONDS = 0.5
worker_group.PARENT_CHECK_SECONDS = 0.1
behavior, folder = sys.argv[1], Path(sys.argv[2])

def run(announce):
    starts = folder / "starts"
    starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
    number = len(starts.read_text())
    (folder / "pid").write_text(str(os.getpid()))
    if behavior == "wrong use":
        return 2
    if behavior == "fails":
        return 1
    if behavior == "refused at once":
        return 3
    announce()
    if behavior == "refused":
        return 3
    if behavior == "dies" and number < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if behavior == "cannot start again" and number < 4:
        return 2
    if behavior == "deaf":
        signal.signal(signal.SIGTERM, lambda *_: (folder / "heard").touch())
    (folder / "works").touch()
    while True:
        time.sleep(0.05)

members = [worker_group.GroupMember("member", run)]
if behavior == "signalled before the second":
    members.append(worker_group.GroupMember("second", run))
    calls, follow = [], worker_group.end_with_parent

    def signalled():
        calls.append("")
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return follow()

    worker_group.end_with_parent = signalled
if behavior == "no process":
    fork, asked = os.fork, []

    def fork_the_third_time():
        asked.append("")
        if len(asked) < 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    os.fork = fork_the_third_time
parent = int(sys.argv[3]) if len(sys.argv) > 3 else None
say = lambda line: print(line, flush=True)
sys.exit(worker_group.WorkerGroup(members, say, parent).run())
'''

Start = Callable[..., CommandProcess]


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Start:
    (tmp_path / "group_program.py").write_text(PROGRAM)

    def starting(behavior: str, *, under: tuple[str, ...] = ()) -> CommandProcess:
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        os.environ["PYTHONPATH"], before = path, os.environ.get("PYTHONPATH", "")
        try:
            process = CommandProcess("group_program", [behavior, tmp_path, *under], tmp_path)
        finally:
            os.environ["PYTHONPATH"] = before
        request.addfinalizer(process.kill_all)
        return process

    return starting


def num_starts(tmp_path: Path) -> int:
    return len((tmp_path / "starts").read_text())


@pytest.mark.parametrize(("behavior", "starts"), [("dies", 3), ("cannot start again", 4)])
def test_a_member_that_was_ready_is_started_again(start: Start, tmp_path: Path, behavior: str, starts: int) -> None:
    """However it ended: a database that is away at its restart is no wrong use."""
    group = start(behavior)
    wait_until((tmp_path / "works").exists)
    group.signal(signal.SIGTERM)
    assert group.finish() == 0
    assert num_starts(tmp_path) == starts
    assert "".join(group.lines).count("starting it again") == starts - 1


def test_a_member_is_started_later_where_there_is_no_process_for_it(start: Start, tmp_path: Path) -> None:
    """As in a container with a bound on its processes: the parent must not end, and all members with it."""
    group = start("no process")
    wait_until((tmp_path / "works").exists)
    group.signal(signal.SIGTERM)
    assert group.finish() == 0
    assert num_starts(tmp_path) == 1
    assert "".join(group.lines).count("member cannot be started: Resource temporarily unavailable") == 2


@pytest.mark.parametrize(
    ("behavior", "starts", "code"),
    [("wrong use", 1, 2), ("fails", 5, 1), ("refused at once", 1, 3), ("refused", 5, 3)],
)
def test_a_member_that_cannot_start_ends_the_group(
    start: Start, tmp_path: Path, behavior: str, starts: int, code: int
) -> None:
    assert start(behavior).finish() == code
    assert num_starts(tmp_path) == starts


def test_a_second_signal_ends_a_member_that_obeys_none(start: Start, tmp_path: Path) -> None:
    group = start("deaf")
    wait_until((tmp_path / "works").exists)
    group.signal(signal.SIGTERM)
    wait_until((tmp_path / "heard").exists)  # the parent has it: two that wait for it would be one
    assert group.process.poll() is None
    group.signal(signal.SIGTERM)
    group.finish()
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_no_member_starts_after_a_signal(start: Start, tmp_path: Path) -> None:
    """The signal was forwarded to those that ran; one that starts later would hear of none and never end."""
    group = start("signalled before the second")
    assert group.process.wait(timeout=HANG_SECONDS) == 0
    assert not (tmp_path / "starts").exists() or num_starts(tmp_path) <= 1  # the first may end before it is counted


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_terminal_that_closes_or_interrupts_signals_the_whole_group(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    """The member leaves it to its parent, which ends it once."""
    group = start("waits")
    wait_until((tmp_path / "works").exists)
    os.killpg(group.process.pid, number)
    assert group.finish() == 0
    assert num_starts(tmp_path) == 1


def test_nohup_is_respected(start: Start, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        group = start("waits")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_until((tmp_path / "works").exists)
    os.killpg(group.process.pid, signal.SIGHUP)
    time.sleep(0.3)
    assert group.process.poll() is None
    group.signal(signal.SIGTERM)
    assert group.finish() == 0


def test_nothing_outlives_a_killed_parent(start: Start, tmp_path: Path) -> None:
    group = start("waits")
    wait_until((tmp_path / "works").exists)
    member = psutil.Process(int((tmp_path / "pid").read_text()))
    group.signal(signal.SIGKILL)
    member.wait(timeout=HANG_SECONDS)


def test_a_group_ends_with_its_producer(start: Start) -> None:
    """Given another process's number than its parent's: that producer is gone."""
    group = start("waits", under=("1",))
    assert group.finish() == 0


def test_the_end_is_forced_after_its_time() -> None:
    ended: list[int] = []
    stopping = Stopping(ended.append)
    assert stopping.note_signal() is True
    stopping._last = time.monotonic() + 60  # no pause of this thread makes the echo a signal of its own
    assert stopping.note_signal() is None  # a service manager's, forwarded by the parent too
    stopping._last = time.monotonic() - 1
    assert stopping.note_signal() is False
    stopping.end_within(0.01)
    wait_until(lambda: ended == [1])


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_worker_whose_log_nobody_reads_works_on(
    is_killed: bool, valkey_url: str, sqlite_url: str, tmp_path: Path
) -> None:
    """As after the end of the `tee` in `worker start 2>&1 | tee log`: it is started again too, and ends in order."""
    database = open_database(sqlite_url)
    upgrade(database)
    app = create_app(Settings(broker=valkey_url, model="toy"))
    worker = WorkerProcess(
        "--model", "toy", "--database", sqlite_url, "--broker", valkey_url, cwd=tmp_path,
        module="benchmarks.support.null_worker", is_awaited=False, NULL_TOKENS="1",
    )  # fmt: skip
    with worker:
        worker.read_until(" serves ")
        assert worker.process.stdout is not None
        worker.process.stdout.close()
        for run_id in ("first", "second"):
            insert_run(database, 64, run_id=run_id)
            send_outbox(database, lambda chunk: send_chunk(app, chunk))
            wait_until(lambda: RunState.RUNNING not in column_of(database, Run.state))
            if is_killed and run_id == "first":
                os.kill(worker.pid, signal.SIGKILL)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait() == 0
    database.dispose()


@pytest.mark.parametrize("streams", [">&-", ">/dev/full", "> >(true) 2>&1"])
def test_a_worker_needs_no_streams(streams: str, valkey_url: str, sqlite_url: str, tmp_path: Path) -> None:
    """Nor do their encodings need the characters of its name: Celery prints that at its start."""
    database = open_database(sqlite_url)
    upgrade(database)
    insert_run(database, 64)
    app = create_app(Settings(broker=valkey_url, model="toy"))
    send_outbox(database, lambda chunk: send_chunk(app, chunk))
    command = [
        sys.executable, "-m", "benchmarks.support.null_worker", "start", "--devices", "cpu", "--model", "toy",
        "--database", sqlite_url, "--broker", valkey_url, "--name", "wörker",
    ]  # fmt: skip
    worker = subprocess.Popen(
        ["bash", "-c", f'exec "$@" {streams}', "bash", *command], cwd=tmp_path, stderr=subprocess.PIPE,
        env=clean_environment(NULL_TOKENS="1", NOCTURNE_NUM_THREADS="1", PYTHONIOENCODING="ascii"),
    )  # fmt: skip
    try:
        wait_until(lambda: column_of(database, Run.state) == [RunState.FINISHED])
        worker.terminate()
        _, told = worker.communicate(timeout=HANG_SECONDS)
        assert worker.returncode == 0 and b"Traceback" not in told
    finally:
        worker.kill()
        worker.communicate()
        database.dispose()
