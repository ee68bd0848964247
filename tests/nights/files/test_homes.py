"""A home is its owner's: files are private even where others may enter it, torn ones ignored, planted ones refused."""

from __future__ import annotations

import json
import os
import resource
import socket
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis

from models.settings import Settings
from producer import redis_socket
from producer.errors import UsageError
from producer.home import HomeLock, holder_of, note_processes, noted_processes
from producer.private_files import make_home, open_private, read_private_json, write_private_json
from producer.redis_socket import PLACE_FILE, RedisSocket, running_socket
from producer.runs import embedded
from producer.runs.database import upgraded_database
from producer.runs.embedded import LocalServices, embedded_broker

NOBODY = 65534
TORN = ["", "{", "[[", "null", "3", '"text"', "{}", "[1]", "[[1]]", '[["a", 1]]', "[[-5, 1.0]]", "[[1e400, 1]]",
        f"[[{10**30}, 1]]", "[" * 100_000, "\0\0\0", "\xff", '{"pid": 1}', '{"pid": -1, "created": 0}']  # fmt: skip


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a path another user's: really where this is root, else in the eyes of our own code."""
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda uid=os.getuid() + 1: uid)


def as_nobody(act: Callable[[], object]) -> str:
    """The name of the exception that another user meets who does something; empty without one. Needs root."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child of a process with threads does little
        pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            try:
                act()
            except Exception as error:
                os.write(writing, type(error).__name__.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with os.fdopen(reading) as file:
        return file.read()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that exists and that others may read."""
    folder = tmp_path / "home"
    folder.mkdir()
    folder.chmod(0o755)
    return folder


def readable_by_others(folder: Path) -> list[str]:
    """The files and folders below it that others may read or enter."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.lstat().st_mode & 0o077]


def test_everything_in_an_open_home_is_private(home: Path) -> None:
    (home / "appendonlydir").mkdir()
    (home / "appendonlydir").chmod(0o755)
    (home / "worker.log").write_text("old\n")
    (home / "worker.log").chmod(0o644)
    settings = Settings(home=home)
    with LocalServices(settings) as local:
        with upgraded_database(settings).begin() as connection:
            connection.exec_driver_sql("CREATE TABLE written (a)")  # makes SQLite's journals
        Redis(unix_socket_path=str(local._socket)).set("prompt", "secret")
        open_private(home / "worker.log", "ab").close()
        assert readable_by_others(home) == []
        assert {"nocturne.db", "redis.log", "worker.log", "lock", "appendonlydir"} <= {p.name for p in home.iterdir()}
    assert readable_by_others(home) == []
    assert (home / "worker.log").read_text() == "old\n"
    assert stat.S_IMODE(home.stat().st_mode) == 0o755, "a folder that exists keeps its rights"


def test_a_database_made_first_is_private_too(tmp_path: Path) -> None:
    upgraded_database(Settings(home=tmp_path / "new" / "home")).dispose()
    assert readable_by_others(tmp_path / "new") == []


@pytest.mark.parametrize("content", TORN)
@pytest.mark.parametrize("name", ["processes.json", "lock", PLACE_FILE])
def test_a_torn_file_blocks_nothing(name: str, content: str, home: Path) -> None:
    (home / name).write_bytes(content.encode("latin-1"))
    assert holder_of(home) is None
    assert noted_processes(home / "processes.json") == []
    assert running_socket(home) is None
    lock = HomeLock(home)
    lock.acquire(lambda _: pytest.fail("it waits"))
    RedisSocket(home).make()
    holder = holder_of(home)
    assert holder is not None and holder.pid == os.getpid()
    lock.release()


def test_noted_processes_are_those_that_run(home: Path) -> None:
    note_processes(home / "processes.json", [os.getpid()])
    assert [process.pid for process in noted_processes(home / "processes.json")] == [os.getpid()]
    ((pid, created),) = json.loads((home / "processes.json").read_text())
    write_private_json(home / "processes.json", [[pid, created - 5]])
    assert noted_processes(home / "processes.json") == [], "the number belongs to another process"


@pytest.mark.parametrize(
    "damage",
    [b"\0" * 400, *(pytest.param(text, marks=pytest.mark.long) for text in (b"", b"file a seq x type b\n", b"\xff"))],
)
def test_a_torn_append_only_file_blocks_no_run(damage: bytes, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LocalServices(Settings(home=home)) as local:
        Redis(unix_socket_path=str(local._socket)).rpush("q", "a")
    for path in (home / "appendonlydir").iterdir():
        path.write_bytes(damage)
    with LocalServices(Settings(home=home)) as local:
        assert Redis(unix_socket_path=str(local._socket)).ping()
    assert not damage or "append-only file, which is removed" in capsys.readouterr().err


PLANTED: dict[str, Callable[[Path], object]] = {
    "link": lambda path: path.symlink_to(path.parent / "victim"),
    "dangling-link": lambda path: path.symlink_to(path.parent / "made-by-the-link"),
    "hard-link": lambda path: os.link(path.parent / "victim", path),
    "pipe": lambda path: os.mkfifo(path),
    "folder": lambda path: path.mkdir(),
}


def test_a_waiting_that_is_interrupted_leaves_no_file_open(home: Path) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    first = HomeLock(home)
    first.acquire(interrupt)
    before = open_files_below(home)
    with pytest.raises(KeyboardInterrupt):
        HomeLock(home).acquire(interrupt)
    assert open_files_below(home) == before != []
    first.release()


def open_files_below(folder: Path) -> list[str]:
    """The files of a folder that this process has open, one for each descriptor; other threads may open others."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sorted(path for path in found if Path(path).is_relative_to(folder))


def test_a_lock_on_a_full_disk_is_one_line_and_is_given_back(home: Path) -> None:
    """A limit on the size of files stands for the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(UsageError, match=f"^cannot write {home / 'lock'}: File too large; free some space"):
            HomeLock(home).acquire(lambda _: pytest.fail("it is held"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    second = HomeLock(home)
    second.acquire(lambda _: pytest.fail("it is held"))
    second.note_run("run-1")
    assert (found := holder_of(home)) is not None and (found.pid, found.run) == (os.getpid(), "run-1")
    second.release()


@pytest.mark.parametrize("named", [False, True])
def test_a_worker_that_ends_is_told_of_by_its_own_words(
    named: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has those of earlier runs too."""
    (home / "worker.log").write_text("worker: an old complaint\n")
    script = "echo 'worker: a new one'; exit 3" if named else "exit 3"
    monkeypatch.setattr(embedded, "worker_command", lambda *_: ["sh", "-c", script])
    services = LocalServices(Settings(home=home))
    services.start_worker()
    assert services._worker is not None
    services._worker.wait()
    told = "a new one" if named else f"without a word in {home / 'worker.log'}"
    with pytest.raises(UsageError, match=f"^the worker ended with exit code 3: {told}$"):
        services.check_worker()
    services.stop_worker()


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_file_is_not_written_to(kind: str, home: Path) -> None:
    (home / "victim").write_text("kept")
    PLANTED[kind](home / "worker.log")
    with pytest.raises(UsageError, match=r"^cannot write .*worker\.log: .*; remove it, or give another --home"):
        open_private(home / "worker.log", "ab")
    assert (home / "victim").read_text() == "kept"
    assert not (home / "made-by-the-link").exists()
    assert read_private_json(home / "worker.log") is None


def test_files_and_homes_of_others_are_not_taken(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("worker.log", "lock", PLACE_FILE):
        (home / name).write_text('"/tmp"')
        (home / name).chmod(0o666)
        give_away(home / name, monkeypatch)
    assert read_private_json(home / "lock") is None
    assert running_socket(home) is None
    with pytest.raises(UsageError, match=r"worker\.log belongs to .*; remove it"):
        open_private(home / "worker.log", "ab")
    give_away(home, monkeypatch)
    with pytest.raises(UsageError, match=r"^the home .* belongs to .*; give a --home of your own"):
        make_home(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user too")
def test_another_user_finds_nothing_to_read_and_nothing_to_be_trapped_by(temporary: Path) -> None:
    """Both ways: root's home read by another user, and another user's visit to what root has prepared."""
    home = temporary / "home"
    home.mkdir()
    home.chmod(0o755)
    with LocalServices(Settings(home=home)) as local:
        upgraded_database(Settings(home=home)).dispose()
        open_private(home / "worker.log", "ab").close()
        socket_path = str(local._socket)
        for name in ("nocturne.db", "worker.log", "redis.log", "lock", "processes.json"):
            assert as_nobody(lambda path=home / name: path.read_bytes()) == "PermissionError", name  # type: ignore[misc]
        assert as_nobody(lambda: list((home / "appendonlydir").iterdir())) == "PermissionError"
        assert as_nobody(lambda: Redis(unix_socket_path=socket_path).ping()) == "ConnectionError"
    trap = temporary / "trap"
    trap.mkdir()
    trap.chmod(0o777)
    (trap / "worker.log").touch()
    (trap / "worker.log").chmod(0o666)
    assert as_nobody(lambda: (trap / "worker.log").open("ab").close()) == "", "it could be written to"
    assert as_nobody(lambda: open_private(trap / "worker.log", "ab")) == "UsageError"
    assert as_nobody(lambda: make_home(trap)) == "UsageError"


@pytest.fixture
def long_home(tmp_path: Path) -> Path:
    return tmp_path / ("long" * 25) / "home"


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files in which everybody may write, as /tmp."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        Path(folder).chmod(0o1777)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_the_socket_of_a_long_home_is_in_a_private_folder_of_no_known_name(long_home: Path, temporary: Path) -> None:
    settings = Settings(home=long_home)
    names = set()
    for _ in range(2):
        with LocalServices(settings) as local:
            (folder,) = temporary.iterdir()
            names.add(folder.name)
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert embedded_broker(settings) == local.settings.broker == f"redis+socket://{folder / 'redis.sock'}"
            assert readable_by_others(long_home) == []
        assert list(temporary.iterdir()) == []
        assert embedded_broker(settings) is None
    assert len(names) == 2


def test_a_killed_producers_socket_folder_is_removed_by_the_next(long_home: Path, temporary: Path) -> None:
    make_home(long_home)
    left = RedisSocket(long_home)
    left.make()
    left.path.touch()
    following = RedisSocket(long_home)
    following.make()
    assert list(temporary.iterdir()) == [following.path.parent]


def test_a_socket_that_others_may_replace_is_not_in_the_home(home: Path, temporary: Path) -> None:
    home.chmod(0o777)
    assert RedisSocket(home).path.is_relative_to(temporary)
    home.chmod(0o755)
    assert RedisSocket(home).path.parent == home


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_folder_or_a_socket_that_another_user_made_is_not_used(
    mode: int, long_home: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_home(long_home)
    planted = temporary / "nocturne-planted"
    planted.mkdir(mode=0o700)
    write_private_json(long_home / PLACE_FILE, str(planted))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(planted / "redis.sock"))
        assert running_socket(long_home) == planted / "redis.sock"
        planted.chmod(mode)
        if mode == 0o700:
            give_away(planted, monkeypatch)
        assert running_socket(long_home) is None


def test_a_temporary_folder_with_a_long_path_is_refused_by_name(
    long_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_home(long_home)
    monkeypatch.setattr(tempfile, "tempdir", str(long_home))
    with pytest.raises(UsageError, match="give a shorter --home, or set TMPDIR to a shorter folder"):
        RedisSocket(long_home).make()
    assert redis_socket.MAX_SOCKET_PATH < 107
    with suppress(FileNotFoundError):
        (long_home / PLACE_FILE).unlink()
