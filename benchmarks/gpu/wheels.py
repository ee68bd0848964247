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
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Packages that the engine imports, and theirs, except torch and numpy, which come with each other.
PACKAGES = (
    "annotated-types", "filelock", "fsspec", "huggingface-hub", "packaging", "pydantic", "pydantic-core", "pyyaml",
    "regex", "safetensors", "tokenizers", "tqdm", "transformers", "typing-extensions", "typing-inspection",
)  # fmt: skip


def pins(constraints: str) -> list[str]:
    """The lines of constraints.txt that pin one of the packages."""
    found = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", constraints, flags=re.MULTILINE))
    by_name = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found.items()}
    return [f"{name}=={by_name[name]}" for name in PACKAGES if name in by_name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python-version", default="3.12")
    parser.add_argument("--platform", default="manylinux_2_28_x86_64")
    given = parser.parse_args()
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(given.folder),
        "--python-version", given.python_version, "--platform", given.platform, "--platform", "manylinux2014_x86_64",
        *pins((ROOT / "constraints.txt").read_text()),
    ]  # fmt: skip
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
