"""Resolves the versions of `constraints.txt` for every Python that pyproject.toml names: `python -m tests.pins`.

Installs nothing and needs nothing but pip 23.3 or newer, which reads the metadata of wheels without downloading
them. Markers such as `python_version < "3.13"` are evaluated by pip for the Python that runs it, whichever version
it resolves for; `make test` on each version covers those.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: What a torch with CUDA pins or bounds by itself; a torch for CPUs has none of it.
PARTS_OF_CUDA = ("cuda-", "nvidia-", "triton")


@dataclass(frozen=True)
class Resolution:
    """The versions that pip would install on one Python, or its complaint."""

    python: str
    seconds: float
    versions: dict[str, str]
    complaint: str


def supported_pythons() -> list[str]:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    return [match[1] for each in classifiers if (match := re.fullmatch(r"Programming Language .* (3\.\d+)", each))]


def pinned_names() -> set[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {_normal(line.split("==")[0]) for line in lines if "==" in line}


def resolve(python: str) -> Resolution:
    """A dry run of pip that takes wheels alone: a package that would have to be built is a complaint."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run",
            "--ignore-installed", "--only-binary=:all:", "--python-version", python, "--target", f"{folder}/nothing",
            "--report", str(report), "--constraint", "constraints.txt", ".[dev]",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        found = json.loads(report.read_text())["install"] if done.returncode == 0 else []
    versions = {_normal(each["metadata"]["name"]): each["metadata"]["version"] for each in found}
    return Resolution(python, time.perf_counter() - began, versions, done.stderr if done.returncode else "")


def problems(resolutions: list[Resolution]) -> list[str]:
    """Versions of Python without a resolution, packages without a pin, pins that nothing asks for."""
    pinned, resolved = pinned_names(), {name for each in resolutions for name in each.versions}
    failed = [f"Python {each.python}:\n{each.complaint}" for each in resolutions if each.complaint]
    free = sorted(name for name in resolved - pinned - {"nocturne"} if not name.startswith(PARTS_OF_CUDA))
    unused = [] if failed else sorted(pinned - resolved)
    return failed + [f"not pinned: {name}" for name in free] + [f"pinned for nothing: {name}" for name in unused]


def _normal(name: str) -> str:
    """One spelling of a package's name, as the index has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    print("python  seconds  packages  resolves")
    resolutions = []
    for python in sys.argv[1:] or supported_pythons():
        each = resolve(python)
        resolutions.append(each)
        outcome = "no" if each.complaint else "yes"
        print(f"{python:6}  {each.seconds:7.1f}  {len(each.versions):8}  {outcome}", flush=True)
    found = problems(resolutions)
    print(*found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
