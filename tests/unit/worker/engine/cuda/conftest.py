"""Triton's interpreter for kernels of GPUs: bf16 in its matmuls, and a count of the bytes that kernels move."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from triton import language
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


@pytest.fixture(autouse=True)
def _matmuls_of_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter of Triton 3.8 multiplies the bits of bf16 as integers: it gets them as fp32 here."""
    exact = InterpreterBuilder.create_dot

    def create_dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
        return exact(builder, _widened(a), _widened(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def _widened(operand: Any) -> Any:
    if operand.dtype.scalar != language.bfloat16:
        return operand
    return TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), language.float32)


class MovedBytes:
    """The bytes that kernels have loaded and stored since it was made; masked elements move none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("create_masked_load", "create_masked_store"):
            monkeypatch.setattr(InterpreterBuilder, name, self._counted(name))

    def _counted(self, name: str) -> Any:
        exact = getattr(InterpreterBuilder, name)
        place = 1 if name == "create_masked_load" else 2

        def counted(builder: Any, ptrs: Any, *rest: Any, **options: Any) -> Any:
            mask = options["mask"] if "mask" in options else rest[place - 1]
            self.count += int(mask.data.sum()) * ptrs.get_element_ty().primitive_bitwidth // 8
            return exact(builder, ptrs, *rest, **options)

        return counted


@pytest.fixture
def moved_bytes(monkeypatch: pytest.MonkeyPatch) -> MovedBytes:
    return MovedBytes(monkeypatch)
