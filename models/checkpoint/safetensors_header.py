"""The header of a safetensors file: which tensors it holds, and whether the file has room for exactly those.

A file is 8 bytes of the header's length, the header as JSON, then the tensors without a gap. Only the header is read.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from models.checkpoint.small_files import CheckpointProblem, check_content, one_line, open_file, parse_json

MAX_HEADER_BYTES = 100_000_000  # the format's own bound
MAX_DIMENSIONS = 16

#: Bits of an element.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors by name. Raises `CheckpointProblem` for a file whose header and size do not fit each other."""
    check_content(path)
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise _damaged(path, "it does not begin with the length of a header")
        if length > size - 8:
            raise _damaged(path, f"it is truncated: its header needs {length + 8:,} bytes, the file has {size:,}")
        text = file.read(length)
    try:
        header = parse_json(text, is_unique=True)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON: {one_line(error)}") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "the metadata of its header are not texts")
    return _tensors(path, header, size - 8 - length)


def _tensors(path: Path, header: dict[str, Any], num_bytes: int) -> dict[str, TensorInfo]:
    """The tensors of a header, if they fill exactly so many bytes."""
    found, spans = {}, []
    for name, entry in header.items():
        tensor, begin, end = _tensor(path, name, entry)
        found[name] = tensor
        spans.append((begin, end, name))
    expected = 0
    for begin, end, name in sorted(spans):
        if begin != expected:
            raise _damaged(path, f"its header leaves a gap or an overlap before the tensor {name!r}")
        expected = end
    if expected > num_bytes:
        raise _damaged(path, f"it is truncated: its tensors need {expected:,} bytes, the file has {num_bytes:,}")
    if expected < num_bytes:
        raise _damaged(path, f"it has {num_bytes - expected:,} bytes more than its header names")
    return found


def _tensor(path: Path, name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    """A tensor, the begin and the end of its bytes."""
    if not isinstance(entry, dict):
        raise _damaged(path, f"its header's entry {name!r} is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _damaged(path, f"the tensor {name!r} has the unknown dtype {str(dtype)[:50]!r}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS or not _are_counts(offsets) or len(offsets) != 2:
        raise _damaged(path, f"the tensor {name!r} has no valid shape and offsets")
    if offsets[1] - offsets[0] != -(-math.prod(shape) * BITS[dtype] // 8):
        raise _damaged(path, f"the shape of the tensor {name!r} does not fit its bytes")
    return TensorInfo(dtype, tuple(shape)), offsets[0], offsets[1]


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _damaged(path: Path, problem: str) -> CheckpointProblem:
    return CheckpointProblem(f"{path} is damaged: {problem}; download it again")
