"""Builds and calls `cpu_kernels.c`, where the machine has a C compiler; without one torch's own operations do.

The library is built once for a processor and kept in the user's cache folder. It shares torch's OpenMP threads,
because both name the same runtime.
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
from enum import Enum
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from worker.engine.attention import AttentionLayer
from worker.engine.kv_cache import KVCache
from worker.engine.step_batch import PagedRows

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("cpu_kernels.c")
FLAGS = (
    "-O3", "-march=native", "-std=c11", "-fopenmp", "-shared", "-fPIC",
    # What lets sums be vectorised; not -ffast-math, whose start-up code changes the whole process.
    "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math",
)  # fmt: skip
BUILD_SECONDS = 60.0

_SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}


class After(Enum):
    """What follows a product; the enum of cpu_kernels.c."""

    NOTHING = 0
    SWISH = 1
    TIMES = 2
    PLUS = 3


class _Shape(ctypes.Structure):
    """The `Shape` of cpu_kernels.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_heads", "num_kv_heads", "dim", "value_dim", "block_size")),
        *((name, ctypes.c_int64) for name in ("max_blocks", "window", "query_stride")),
        ("scale", ctypes.c_float),
    ]


class CpuKernels:
    """The functions of the library for one dtype; a `PagedAttention` for decoding rows."""

    covers_prefill = False

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._attend = getattr(library, f"paged_attention_{_SUFFIXES[dtype]}")
        self._normalise = getattr(library, f"rms_norm_{_SUFFIXES[dtype]}")
        self._quantise = getattr(library, f"quantise_{_SUFFIXES[dtype]}")
        self._finish = getattr(library, f"finish_{_SUFFIXES[dtype]}")

    def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:
        """Attention of rows [rows, heads, dim] over their own keys; returns [rows, heads, value_dim]."""
        keys, values = cache.pools(layer.index)
        num_rows, num_heads, dim = query.shape
        if query.stride(1) != dim or query.stride(2) != 1:
            query = query.contiguous()
        output = query.new_empty(num_rows, num_heads, values.shape[2])
        shape = _Shape(
            num_heads, keys.shape[1], dim, values.shape[2], cache.block_size,
            rows.block_table.shape[1], layer.window or 0, query.stride(0), layer.scale,
        )  # fmt: skip
        pointers = (_pointer(each) for each in (output, query, keys, values, rows.block_table, rows.num_keys))
        if self._attend(*pointers, ctypes.c_int64(num_rows), ctypes.byref(shape)):
            raise MemoryError("not enough memory for the attention scores of a step")
        return output

    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """rows / sqrt(mean of squares + eps) * weight over the last dimension."""
        rows = rows.contiguous()
        output = torch.empty_like(rows)
        size = rows.shape[-1]
        self._normalise(
            _pointer(output), _pointer(rows), _pointer(weight),
            ctypes.c_int64(rows.numel() // size), ctypes.c_int64(size), ctypes.c_float(eps),
        )  # fmt: skip
        return output

    def quantise(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [rows, size] as bytes around 128, and each row's scale [rows]: rows ~ (bytes - 128) * scale."""
        rows = rows.contiguous()
        num_rows, size = rows.shape
        quantised = rows.new_empty(num_rows, size, dtype=torch.uint8)
        scales = rows.new_empty(num_rows, dtype=torch.float32)
        self._quantise(
            _pointer(quantised), _pointer(scales), _pointer(rows), ctypes.c_int64(num_rows), ctypes.c_int64(size)
        )
        return quantised, scales

    def finish(
        self, products: Tensor, scales: Tensor, bias: Tensor | None, after: After, other: Tensor | None = None
    ) -> Tensor:
        """fp32 products [rows, size] times each row's scale, plus bias [size], and what follows.

        Returns [rows, size] in the model's dtype.
        """
        output = products.new_empty(products.shape, dtype=self._dtype)
        nothing = ctypes.c_void_p(None)
        self._finish(
            _pointer(output), _pointer(products), _pointer(scales), nothing if bias is None else _pointer(bias),
            nothing if other is None else _pointer(other.contiguous()),
            ctypes.c_int64(products.shape[0]), ctypes.c_int64(products.shape[1]), ctypes.c_int64(after.value),
        )  # fmt: skip
        return output


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def cpu_kernels(dtype: torch.dtype) -> CpuKernels | None:
    """The kernels for the dtype, or None where they cannot be built."""
    library = _library() if dtype in _SUFFIXES else None
    return None if library is None else CpuKernels(library, dtype)


@cache
def _library() -> ctypes.CDLL | None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if sys.platform != "linux" or compiler is None:
        logger.info("no C compiler: attention goes through torch's own operations")
        return None
    try:
        return ctypes.CDLL(str(_build(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("the CPU kernels could not be built, torch's own operations do: %s", error)
        return None


def _build(compiler: str) -> Path:
    """The built library; compiled now unless it is in the cache. Raises `OSError` or `SubprocessError`."""
    folder = _cache_folder()
    path = folder / f"cpu-kernels-{_fingerprint(compiler)}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            built = Path(work) / path.name
            command = [compiler, *FLAGS, "-o", str(built), str(SOURCE), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS)
            built.replace(path)  # others may be building the same
    return path


def _cache_folder() -> Path:
    """A folder that only this user can write to: what lies in it is loaded as code."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "nocturne"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written by others")
    return folder


def _fingerprint(compiler: str) -> str:
    """Names the source, how it is compiled and the processor it is compiled for."""
    digest = hashlib.blake2b(SOURCE.read_bytes(), digest_size=12)
    digest.update(repr((compiler, FLAGS)).encode())
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features", "model name")):
            digest.update(line.encode())
        elif not line:
            break
    return digest.hexdigest()
