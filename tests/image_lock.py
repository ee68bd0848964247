"""Writes `requirements-image.txt`, the hashes of what the image installs beside torch: `python -m tests.image_lock`.

pip resolves the project's dependencies by the versions of `constraints.txt`, once for each processor, and reports the
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
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements-image.txt"
PYTHON = "3.13"  # of the Dockerfile
MACHINES = ("x86_64", "aarch64")
OLDEST_GLIBC, NEWEST_GLIBC = 5, 41  # 2.5 … 2.41, that of Debian 13; the newest first, as pip prefers it

#: What a torch for CPUs needs, and the tool that builds the project: neither is a dependency of ours.
BESIDE = ("filelock", "fsspec", "networkx", "sympy", "typing_extensions", "setuptools")

HEADER = """\
# The wheels of the image beside torch, with their hashes; torch has an index of its own and is pinned by its version.
# Made by `python -m tests.image_lock` from pyproject.toml and constraints.txt. Do not edit.
"""


def wanted() -> list[str]:
    """The project's dependencies without torch, and what a torch for CPUs needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [each for each in project["dependencies"] if not re.match(r"torch\b", each)] + list(BESIDE)


def resolve(machine: str) -> dict[str, tuple[str, str]]:
    """The version and the hash of each package that pip would install on a machine."""
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run",
            "--ignore-installed", "--only-binary=:all:", "--python-version", PYTHON, "--target", f"{folder}/nothing",
            *(part for tag in tags for part in ("--platform", tag)),
            "--report", str(report), "--constraint", "constraints.txt", *wanted(),
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


def lock_text(resolved: list[dict[str, tuple[str, str]]]) -> str:
    """The file: each package with the hashes of its wheels for all machines."""
    lines = [HEADER]
    for name in sorted({name for each in resolved for name in each}, key=str.lower):
        found = [each[name] for each in resolved if name in each]
        (version,) = {version for version, _ in found}
        hashes = sorted({sha256 for _, sha256 in found})
        lines.append(f"{name}=={version}" + "".join(f" \\\n    --hash=sha256:{sha256}" for sha256 in hashes) + "\n")
    return "".join(lines)


def main() -> None:
    LOCK.write_text(lock_text([resolve(machine) for machine in MACHINES]), encoding="utf-8")
    print(f"{LOCK} written")


if __name__ == "__main__":
    main()
