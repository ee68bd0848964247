"""Builds the C kernels of `csrc/` as a shared library, where the machine has a C compiler.

Without one, torch's own operations take their place. The library is built once for a processor and kept in the user's
cache folder. It shares torch's OpenMP threads, because both name the same runtime.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from torch import Tensor

from models.checkpoint.paths.cache_folder import users_cache_folder

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).with_name("csrc")
FLAGS = (
    "-O3", "-march=native", "-std=c11", "-fopenmp", "-shared", "-fPIC",
    # Lets GCC vectorize sums. Not -ffast-math: its start-up code makes the whole process flush denormals.
    "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-ffp-contract=fast",
)  # fmt: skip
#: A build takes about 15 s of processor time; on a machine that is busy with other work minutes pass.
BUILD_SECONDS = 600.0


@cache
def cpu_library() -> ctypes.CDLL | None:
    """The built library, or None where it cannot be built."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if sys.platform != "linux" or compiler is None:
        logger.warning("no C compiler (cc): decoding on this CPU goes through torch's own operations and is slower")
        return None
    try:
        return ctypes.CDLL(str(_build(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning(
            "the CPU kernels could not be built, torch's own operations take their place and decoding is slower: %s; "
            "let XDG_CACHE_HOME name a folder where files may be written and executed",
            error,
        )
        return None


def _build(compiler: str) -> Path:
    """The built library; compiled now unless it is in the cache. Raises `OSError` or `SubprocessError`."""
    folder = _cache_folder()
    path = folder / f"cpu-kernels-{_fingerprint(compiler)}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            built = Path(work) / path.name
            command = [compiler, *FLAGS, "-o", str(built), *map(str, sorted(FOLDER.rglob("*.c"))), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS)
            built.replace(path)  # others may be building the same
    return path


def _cache_folder() -> Path:
    """A folder that only this user can write to: its files are loaded as code."""
    folder = users_cache_folder() / "nocturne"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written by others")
    return folder


def _fingerprint(compiler: str) -> str:
    """A hash of the sources, the compiler with its flags, and the processor."""
    digest = hashlib.blake2b(repr((compiler, FLAGS)).encode(), digest_size=12)
    for source in sorted(FOLDER.rglob("*.[ch]")):
        digest.update(source.read_bytes())
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features", "model name")):
            digest.update(line.encode())
        elif not line:
            break
    return digest.hexdigest()


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """A tensor as an argument of the library; keep the tensor alive until the call is over."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
