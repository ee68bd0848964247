"""Writes the hashes of what the two images install, ours beside torch and Flower's: `python -m tests.image_lock`.

pip resolves each image's packages by the versions of `constraints.txt`, once for each processor, and reports the
wheel that it would take with its hash. Run it after a change of constraints.txt, with the Python of the image: pip
evaluates markers for the Python that runs it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements-image.txt"
FLOWER_LOCK = ROOT / "docker" / "flower" / "requirements.txt"
PYTHON = "3.13"  # of the Dockerfiles
MACHINES = ("x86_64", "aarch64")
OLDEST_GLIBC, NEWEST_GLIBC = 5, 41  # 2.5 … 2.41, that of Debian 13; the newest first, as pip prefers it

#: What a torch for CPUs needs, and the tool that builds the project: neither is a dependency of ours.
BESIDE = ("filelock", "fsspec", "networkx", "sympy", "typing_extensions", "setuptools")

#: The project of Flower builds no image with a newer Celery; ours has the one of the workers.
FLOWER = ("flower==2.0.1", "celery[redis]")

MADE = "# Made by `python -m tests.image_lock` from pyproject.toml and constraints.txt. Do not edit.\n"
HEADER = f"""\
# The wheels of the image beside torch, with their hashes; torch has an index of its own and is pinned by its version.
{MADE}"""
FLOWER_HEADER = f"""\
# The wheels of Flower's image, with their hashes.
{MADE}"""


def wanted() -> list[str]:
    """The project's dependencies without torch, and what a torch for CPUs needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [each for each in project["dependencies"] if not re.match(r"torch\b", each)] + list(BESIDE)


def resolve(machine: str, requirements: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The version and the hash of each package that pip would install on a machine."""
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run",
            "--ignore-installed", "--only-binary=:all:", "--python-version", PYTHON, "--target", f"{folder}/nothing",
            *(part for tag in tags for part in ("--platform", tag)),
            "--report", str(report), "--constraint", "constraints.txt", *requirements,
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True)
        found = json.loads(report.read_text())["install"]
    return {
        each["metadata"]["name"]: (
            each["metadata"]["version"],
            each["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for each in found
    }


def lock_text(header: str, resolved: list[dict[str, tuple[str, str]]]) -> str:
    """The file: each package with the hashes of its wheels for all machines."""
    lines = [header]
    for name in sorted({name for each in resolved for name in each}, key=str.lower):
        found = [each[name] for each in resolved if name in each]
        (version,) = {version for version, _ in found}
        hashes = sorted({sha256 for _, sha256 in found})
        lines.append(f"{name}=={version}" + "".join(f" \\\n    --hash=sha256:{sha256}" for sha256 in hashes) + "\n")
    return "".join(lines)


def main() -> None:
    for lock, header, requirements in ((LOCK, HEADER, wanted()), (FLOWER_LOCK, FLOWER_HEADER, FLOWER)):
        lock.write_text(lock_text(header, [resolve(machine, requirements) for machine in MACHINES]), encoding="utf-8")
        print(f"{lock} written")


if __name__ == "__main__":
    main()
