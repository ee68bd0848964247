"""Collects the wheels that the engine needs beside torch, for a machine without a network.

    python -m benchmarks.gpu.wheels wheels/ --python-version 3.12
    pip install --no-index --find-links wheels/ --no-deps wheels/*.whl        (there)

The versions are those of constraints.txt.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

#: Packages that the engine imports; what they need comes with them.
ROOTS = ("transformers", "pydantic", "psutil")

#: They are there, and other versions of them would not fit each other.
LEFT_OUT = {"torch", "numpy"}


def packages(python_version: str) -> set[str]:
    """The packages, as those installed here name the ones that they need."""
    environment = {"python_version": python_version, "python_full_version": f"{python_version}.0", "extra": ""}
    found, left = set[str](), list(ROOTS)
    while left:
        name = canonicalize_name(left.pop())
        if name in found | LEFT_OUT:
            continue
        found.add(name)
        needed = map(Requirement, metadata.requires(name) or ())
        left += [each.name for each in needed if each.marker is None or each.marker.evaluate(environment)]
    return found


def pins(constraints: str, names: Iterable[str]) -> list[str]:
    """The lines of constraints.txt that pin the packages."""
    found = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", constraints, flags=re.MULTILINE))
    by_name = {canonicalize_name(name): version for name, version in found.items()}
    return [f"{name}=={by_name[canonicalize_name(name)]}" for name in sorted(names)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python-version", default="3.12")
    parser.add_argument("--platform", default="manylinux_2_28_x86_64")
    given = parser.parse_args()
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(given.folder),
        "--python-version", given.python_version, "--platform", given.platform, "--platform", "manylinux2014_x86_64",
        *pins((ROOT / "constraints.txt").read_text(), packages(given.python_version)),
    ]  # fmt: skip
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
