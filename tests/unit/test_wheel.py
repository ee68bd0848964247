"""The wheel holds every file of the product, with the C sources and the parts of reports and migrations."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.processes import HANG_SECONDS, ROOT, clean_environment

PACKAGES = ("models", "worker", "producer", "migrations")

#: Builds without the network: setuptools, the build backend of pyproject.toml, comes with torch.
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


def product_files(root: Path) -> set[str]:
    """Paths relative to the root, without what Python and this machine leave there."""
    return {
        path.relative_to(root).as_posix()
        for package in PACKAGES
        for path in (root / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel that is built from a copy of the sources: a build writes into its folder."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-P", "-c", BUILD, str(output)]
    built = subprocess.run(
        command, cwd=source, env=clean_environment(), capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = output.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_a_wheel_holds_every_file_of_the_product(wheel_files: set[str]) -> None:
    assert product_files(ROOT) - wheel_files == set()


@pytest.mark.parametrize(
    "pattern", ["worker/engine/cpu/csrc/**/*.c", "worker/engine/cpu/csrc/*.h", "producer/**/*.html", "producer/**/*.js"]
)
def test_a_wheel_holds_the_sources_that_are_not_python(wheel_files: set[str], pattern: str) -> None:
    """Named, so that a folder that moves away takes its test along."""
    expected = {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)}
    assert expected and expected <= wheel_files
