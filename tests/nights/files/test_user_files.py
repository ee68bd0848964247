"""`-o` writes regular files whole and with the rights they have to have; nothing else is replaced or followed."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from producer.atomic_file import atomic_file, check_target
from producer.errors import UsageError
from tests.support.capabilities import without_capabilities
from tests.support.processes import clean_environment

WRITE = """\
from pathlib import Path
from producer.atomic_file import atomic_file
from tests.support.capabilities import without_capabilities
with atomic_file(Path({!r})) as file:
    file.write("new")
"""


def write(target: Path, text: str = "new") -> None:
    with atomic_file(target) as file:
        file.write(text)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(params=[0o022, 0o077, 0o002, 0o027])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_new_file_has_the_rights_of_the_umask(umask: int, tmp_path: Path) -> None:
    write(tmp_path / "answers.csv")
    assert mode_of(tmp_path / "answers.csv") == 0o666 & ~umask


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o755])
def test_a_file_that_exists_keeps_its_rights(mode: int, tmp_path: Path) -> None:
    target = tmp_path / "answers.csv"
    target.write_text("old")
    target.chmod(mode)
    with atomic_file(target) as file:
        file.write("new")
        (beside,) = tmp_path.glob(".nocturne-*")
        assert mode_of(beside) & ~mode == 0, "others see the unfinished file"
        assert target.read_text() == "old"
    assert (mode_of(target), target.read_text()) == (mode, "new")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_writing_changes_nothing(error: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "answers.csv"
    target.write_text("old")
    with pytest.raises(error), atomic_file(target) as file:
        file.write("new")
        raise error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("answers.csv", "old")]


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


def make_link(path: Path) -> None:
    (path.parent / "secret").write_text("old")
    path.symlink_to(path.parent / "secret")


UNFIT: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (make_link, "it is a link to .*secret; give the file itself"),
    "dangling-link": (lambda path: path.symlink_to("nowhere"), "it is a link to nowhere"),
    "link-to-itself": (lambda path: path.symlink_to(path.name), "it is a link to"),
    "link-to-a-device": (lambda path: path.symlink_to("/dev/null"), "it is a link to /dev/null"),
    "folder": (lambda path: path.mkdir(), "it is a folder; give a file in it"),
    "socket": (make_socket, "it is a socket; give a file"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_anything_else_is_refused_and_stays(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    make, message = UNFIT[kind]
    target = Path("out")
    make(target.absolute() if kind == "link" else target)
    before = (target.lstat(), sorted(os.listdir()))
    for refuse in (write, check_target):
        with pytest.raises(UsageError, match=f"^cannot write out: {message}"):
            refuse(target)
    assert (target.lstat().st_ino, sorted(os.listdir())) == (before[0].st_ino, before[1])
    assert kind != "link" or Path("secret").read_text() == "old"


def test_a_file_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch(0o444)
    with without_capabilities(), pytest.raises(UsageError, match="its rights forbid it"):
        write(tmp_path / "out")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_leaves_a_file_to_its_owner(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.touch(0o600)
    os.chown(target, 65534, 65534)
    write(target)
    status = target.stat()
    assert (status.st_uid, status.st_gid, mode_of(target), target.read_text()) == (65534, 65534, 0o600, "new")


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(pipe)
    reader.join()
    assert read == ["new"] and stat.S_ISFIFO(pipe.lstat().st_mode)


def test_devices_are_written_to_and_stay() -> None:
    before = os.lstat("/dev/null")
    write(Path("/dev/null"))
    assert os.lstat("/dev/null").st_ino == before.st_ino
    if Path("/dev/full").exists():
        with pytest.raises(UsageError, match="^cannot write /dev/full: No space left on device"):
            write(Path("/dev/full"))


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/../dev/stdout"])
def test_the_processs_own_output_is_appended_to(name: str, tmp_path: Path) -> None:
    """Both where it is a pipe and where it is a file that has content already."""
    before = os.lstat("/dev/stdout")
    program = [sys.executable, "-c", WRITE.format(name)]
    piped = subprocess.run(program, capture_output=True, text=True, check=True, env=clean_environment())
    assert piped.stdout == "new"
    with (tmp_path / "log").open("w") as file:
        file.write("old, ")
        file.flush()
        subprocess.run(program, stdout=file, check=True, env=clean_environment())
    assert (tmp_path / "log").read_text() == "old, new"
    assert os.lstat("/dev/stdout").st_ino == before.st_ino


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a" * 255, None), ("a" * 256, "name too long"), ("no/file", "No such"), (f"/dev/fd/{10**20}", "")],
)
def test_long_and_absent_places(name: str, reason: str | None, tmp_path: Path) -> None:
    target = tmp_path / name
    if reason is None:
        write(target)
        assert target.read_text() == "new"
    else:
        with pytest.raises(UsageError, match=f"(?i)^cannot write .*: .*{reason}"):
            write(target)
