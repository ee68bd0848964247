"""`nocturne.toml` of the working directory: taken from this user or root alone; each value says where it is from."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from models.settings import InvalidSettings, Settings, read_settings
from producer.runs.doctor import examine
from tests.nights.files.test_homes import give_away

HOSTILE = 'broker = "redis://evil:6379/0"\ndatabase = "postgresql://evil/db"\n'


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, with rights that are taken."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "nocturne.toml"
    path.write_text(HOSTILE)
    path.chmod(0o644)
    return path


def linked(path: Path) -> None:
    path.rename(path.with_name("mine.toml"))
    path.symlink_to("mine.toml")


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        path.unlink()
        make(path)

    return do


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "group-writable": (
        lambda path: path.chmod(0o664),
        r"can be written by other users, so it is not read; chmod go-w ",
    ),
    "world-writable": (lambda path: path.chmod(0o646), r"can be written by other users"),
    "pipe": (replaced(os.mkfifo), "is not a file, so it is not read; remove it"),
    "folder": (replaced(lambda path: path.mkdir()), "is not a file"),
    "device": (replaced(lambda path: path.symlink_to("/dev/zero")), "is not a file"),
    "dangling-link": (replaced(lambda path: path.symlink_to("nowhere")), "cannot be read: No such file"),
    "link-to-itself": (replaced(lambda path: path.symlink_to(path.name)), "cannot be read: Too many levels"),
    "sparse-terabyte": (lambda path: os.truncate(path, 2**40), "has 1,099,511,627,776 bytes, more than"),
    "nested": (lambda path: path.write_text("broker = " + "[" * 100_000), "is not TOML"),
    "not-utf-8": (lambda path: path.write_bytes(b"broker = '\xff'"), "is not TOML"),
    "huge-number": (lambda path: path.write_text("concurrency = " + "9" * 100_000), "is not TOML"),
    "switch": (lambda path: path.write_text("concurrency = true"), "concurrency is true, and takes another value"),
    "unknown": (lambda path: path.write_text("brokr = ''"), "brokr is not a setting; did you mean broker?"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_is_not_taken_is_refused_by_name(kind: str, path: Path) -> None:
    change, message = REFUSED[kind]
    change(path)
    with pytest.raises(InvalidSettings, match=message) as refused:
        read_settings()
    assert str(refused.value).startswith(str(path)) and "\n" not in str(refused.value)


@pytest.mark.parametrize("is_link", [False, True])
def test_another_users_file_is_not_taken(is_link: bool, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_link:
        linked(path)
    give_away(path, monkeypatch)
    with pytest.raises(InvalidSettings, match=r"^/.*nocturne\.toml belongs to .*, so its settings are not taken"):
        read_settings(broker="redis://localhost")


@pytest.mark.parametrize("is_link", [False, True])
def test_a_file_of_ones_own_or_roots_is_taken(is_link: bool, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_link:
        linked(path)
    assert read_settings().broker == "redis://evil:6379/0"
    if os.geteuid() == 0:  # the file is root's
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert read_settings().broker == "redis://evil:6379/0"


def test_every_setting_says_where_it_is_from(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOCTURNE_MODEL", "nowhere/model")
    monkeypatch.setenv("NOCTURNE_BROKER", "redis://localhost:1/0")
    settings = read_settings(home=Path("h"), database=None)
    origins = {
        "broker": "NOCTURNE_BROKER of the environment",
        "database": str(path),
        "home": "--home",
        "model": "NOCTURNE_MODEL of the environment",
    }
    assert settings.origins == origins
    finding = next(examine(settings))
    assert (finding.part, finding.message) == ("settings", "; ".join(f"{k}: {v}" for k, v in origins.items()))
    assert next(examine(Settings(home=Path("h")).model_copy())).part == "settings"


@pytest.mark.parametrize("source", ["flag", "environment", "file"])
def test_a_bad_value_is_told_with_its_source(source: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("concurrency = 0" if source == "file" else "concurrency = 4")
    if source != "file":
        monkeypatch.setenv("NOCTURNE_CONCURRENCY", "0" if source == "environment" else "5")
    flags = {"concurrency": 0} if source == "flag" else {}
    beginnings = {
        "flag": "--concurrency: ", "environment": "NOCTURNE_CONCURRENCY of the environment: ",
        "file": f"concurrency in {path}: ",
    }  # fmt: skip
    with pytest.raises(InvalidSettings) as refused:
        read_settings(**flags)
    assert str(refused.value).startswith(beginnings[source])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("home = ''", "home in .*: must be a path, got ''"),
        ("home = 5", "home in .*: must be a path, got 5"),
        ("database = ''", "database in .*: '' is not a URL; give sqlite:///"),
        ("read_database = ''", "read_database in .*: '' is not a URL"),
        ("lease_seconds = inf", "lease_seconds in .*: input should be a finite number, got inf"),
    ],
)
def test_a_value_that_would_be_taken_for_another_is_refused(line: str, message: str, path: Path) -> None:
    path.write_text(line)
    with pytest.raises(InvalidSettings, match=message):
        read_settings()


def test_an_empty_variable_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "DATABASE", "BROKER", "MAX_NUM_SEQS"):
        monkeypatch.setenv(f"NOCTURNE_{name}", "")
    settings = read_settings()
    assert (settings.home, settings.max_num_seqs) == (Path(".nocturne"), None)
    assert settings.origins == {"broker": str(path), "database": str(path)}
    with pytest.raises(InvalidSettings, match=r"^--database: '' is not a URL"):
        read_settings(database="")


def test_a_file_of_another_system_is_read(path: Path) -> None:
    path.write_bytes(b'\xef\xbb\xbfhome = "elsewhere"\r\nconcurrency = 3\r\n')
    settings = read_settings()
    assert (settings.home, settings.concurrency) == (Path("elsewhere"), 3)
