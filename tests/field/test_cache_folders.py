"""A worker decodes for a user without a name, a home and a disk: as containers and clusters start it."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from models.checkpoint.paths.cache_folder import users_cache_folder
from models.checkpoint.paths.verdict import stored_verdict
from tests.conftest import TOY_MODEL
from tests.support.processes import run_producer
from worker.engine_process.cache_folders import LIBRARIES, name_cache_folders

NOWHERE = "/proc/nowhere"  # where not even root can make a folder


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Nothing that is named can be written to, but for a folder of temporary files."""
    for variable in ("HOME", "XDG_CACHE_HOME", *LIBRARIES):
        monkeypatch.setenv(variable, NOWHERE)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return monkeypatch


def named() -> list[Path]:
    return [Path(os.environ[variable]) for variable in ("XDG_CACHE_HOME", *LIBRARIES)]


@pytest.mark.usefixtures("environment")
def test_folders_that_cannot_be_written_are_replaced_by_one_of_this_user(tmp_path: Path) -> None:
    name_cache_folders()
    folders = named()
    assert {folder.relative_to(tmp_path).parts[0] for folder in folders} == {f"nocturne-cache-{os.getuid()}"}
    name_cache_folders()
    assert named() == folders
    assert folders[0].stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("kind", ["link", "file", "open folder"])
def test_a_strangers_folder_is_not_taken(kind: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    place = tmp_path / f"nocturne-cache-{os.getuid()}"
    if kind == "link":
        place.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        place.touch()
    else:
        place.mkdir()
        place.chmod(0o777)
    name_cache_folders()
    assert named()[0].parent == tmp_path and named()[0] != place
    assert not list((tmp_path / "elsewhere").iterdir())


def test_folders_that_can_be_written_stay(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("XDG_CACHE_HOME", *LIBRARIES):
        environment.setenv(variable, str(tmp_path / variable))
    name_cache_folders()
    assert named() == [tmp_path / variable for variable in ("XDG_CACHE_HOME", *LIBRARIES)]


@pytest.mark.parametrize("given", ["", "relative", None])
def test_the_working_directory_is_no_cache(given: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "also/relative")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    with pytest.raises(FileNotFoundError, match="no home"):
        users_cache_folder()
    assert stored_verdict("any") is None


def test_a_run_without_a_folder_of_its_own(tmp_path: Path) -> None:
    with TemporaryDirectory() as temporary:  # Redis' socket is in it, whose path is short
        finished = run_producer(
            tmp_path, "run", "--prompt", "Once", "--model", TOY_MODEL, TMPDIR=temporary, HOME=NOWHERE,
            XDG_CACHE_HOME=NOWHERE, TORCHINDUCTOR_CACHE_DIR=NOWHERE, TRITON_CACHE_DIR=NOWHERE,
        )  # fmt: skip
    assert "1 of 1 jobs succeeded" in finished.stderr
