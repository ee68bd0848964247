"""The C kernels of `csrc/` on tensors of one dtype; `cpu_library` builds them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.params import GenerationParams
from models.states import Strategy
from worker.engine.cpu.large_pages import LargePages, large_pages
from worker.engine.cpu.library import cpu_library, pointer
from worker.engine.cpu.weight_layout import SIDE, WORD_BYTES, pack_panels, pack_tiles
from worker.engine.sampling.choices import COLUMNS, Choices

#: A row of a tile of AMX.
TILE_ROW_BYTES = SIDE * WORD_BYTES

_SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}


class After(Enum):
    """What follows a product; the enum of epilogue.h."""

    NOTHING = 0
    PLUS = 1
    GATED = 2


@dataclass(frozen=True)
class Panels:
    """Weights of a product as gemm.c wants them; made by `CpuKernels.pack`."""

    packed: Tensor
    inputs: int  # whole words or rows of tiles
    bias: Tensor | None  # [outputs], fp32


@dataclass(frozen=True)
class Int8Panels(Panels):
    scales: Tensor  # [outputs], fp32
    zeros: Tensor  # [outputs], int32: the products of zeros, which are bytes of 128


class _Worth(ctypes.Structure):
    """The `Worth` of gemm.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("row_scales", "weight_scales", "zeros")]


class CpuKernels:
    """The functions of the library for one dtype."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype, products: str | None = None) -> None:
        """`products` is a function of gemm.c, the fastest one unless a test names another."""
        self.dtype = dtype
        self.products = products or fastest_products(library, dtype)
        self._may_use_amx = bool(library.may_use_amx())
        self.int8_products = f"multiply_int8_{'amx_' * self._may_use_amx}{_SUFFIXES[dtype]}"
        self.memory = LargePages()
        self._logits = torch.empty(0, dtype=torch.uint8)
        self._many_outputs = ctypes.c_int64.in_dll(library, "many_outputs").value  # a row of so many is logits
        self._rotate = getattr(library, f"rotate_{_SUFFIXES[dtype]}")
        # Logits may be of another dtype than the model: some architectures compute them in fp32.
        self._choose = {each: getattr(library, f"choose_{suffix}") for each, suffix in _SUFFIXES.items()}
        self._normalise = getattr(library, f"rms_norm_{_SUFFIXES[dtype]}")
        self._quantise = getattr(library, f"quantise_{_SUFFIXES[dtype]}")
        # Only where the processor has AVX-512, and for int8 instructions that multiply four bytes.
        self._multiply = getattr(library, self.products, None)
        self._multiply_int8 = getattr(library, self.int8_products, None)
        self._finish = getattr(library, f"finish_{_SUFFIXES[dtype]}")

    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """rows / sqrt(mean of squares + eps) * weight over the last dimension."""
        rows = rows.contiguous()
        output = torch.empty_like(rows)
        size = rows.shape[-1]
        self._normalise(
            pointer(output), pointer(rows), pointer(weight),
            ctypes.c_int64(rows.numel() // size), ctypes.c_int64(size), ctypes.c_float(eps),
        )  # fmt: skip
        return output

    def rotate(self, heads: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        """Rotates heads [rows, heads, dim] in place by angles [rows, 1, dim]; rows may lie apart."""
        num_rows, num_heads, dim = heads.shape
        sizes = (num_rows, num_heads, dim, heads.stride(0))
        self._rotate(pointer(heads), pointer(cos), pointer(signed_sin), *map(ctypes.c_int64, sizes))
        return heads

    def choose(self, logits: Tensor, params: Sequence[GenerationParams], uniforms: Sequence[float]) -> Choices:
        """As `choose_batch` does, each row on one thread."""
        logits = (logits if logits.dtype in self._choose else logits.float()).contiguous()
        num_rows, vocab = logits.shape
        k = min(max(each.top_logprobs for each in params), vocab)
        asked = torch.tensor(
            [(*_as_asked(each), number) for each, number in zip(params, uniforms, strict=True)], dtype=torch.float64
        )
        chosen = torch.empty(num_rows, len(COLUMNS), dtype=torch.float64)
        best_ids, best = torch.empty(num_rows, k, dtype=torch.int32), torch.empty(num_rows, k)
        pointers = map(pointer, (chosen, best_ids, best, logits, asked))
        if self._choose[logits.dtype](*pointers, *map(ctypes.c_int64, (num_rows, vocab, k))):
            raise MemoryError("not enough memory to choose tokens")
        return Choices(chosen.tolist(), best_ids.tolist(), best.tolist())

    @property
    def has_products(self) -> bool:
        """Products of the dtype itself."""
        return self._multiply is not None and (self._may_use_amx or not self._is_amx(self.dtype))

    @property
    def has_int8_products(self) -> bool:
        return self._multiply_int8 is not None

    def filled(self, weight: Tensor) -> Tensor:
        """Weight [out_features, in_features] with zeros up to what products of its dtype multiply at a time."""
        least = (TILE_ROW_BYTES if self._is_amx(weight.dtype) else WORD_BYTES) // weight.itemsize
        return F.pad(weight, (0, -weight.shape[1] % least))

    def pack(self, weight: Tensor) -> Tensor:
        """A filled weight, of the dtype or int8, in the order of the products, in large pages."""
        return self.memory.keep(pack_tiles(weight) if self._is_amx(weight.dtype) else pack_panels(weight))

    def _is_amx(self, dtype: torch.dtype) -> bool:
        return "amx" in (self.products if dtype is self.dtype else self.int8_products)

    def multiply(
        self, rows: Tensor, weights: Panels, after: After, outputs: int, other: Tensor | None = None
    ) -> Tensor:
        """Rows [rows, inputs] times the weights, plus their bias, and what follows; [rows, outputs].

        Logits lie where the next logits will: they are to be used, or copied, before.
        """
        return self._product(self._multiply, rows, _filled(rows, weights), weights, None, after, outputs, other)

    def multiply_int8(
        self, rows: Tensor, weights: Int8Panels, after: After, outputs: int, other: Tensor | None = None
    ) -> Tensor:
        """The same in bytes: rows are quantised one by one."""
        quantised, scales = self.quantise(_filled(rows, weights))
        worth = _Worth(*map(pointer, (scales, weights.scales, weights.zeros)))
        return self._product(self._multiply_int8, rows, quantised, weights, worth, after, outputs, other)

    def _product(
        self, multiply: Any, rows: Tensor, words: Tensor, weights: Panels, worth: _Worth | None,
        after: After, outputs: int, other: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """A function of gemm.c on rows that are made of the words to be multiplied."""
        words, other = words.contiguous(), None if other is None else other.contiguous()
        output = self._room(rows, outputs)
        pointers = map(pointer, (output, words, weights.packed, weights.bias, other))
        num_words = words.shape[1] * words.itemsize // WORD_BYTES
        sizes = map(ctypes.c_int64, (len(output), num_words, outputs, after.value))
        multiply(*pointers, None if worth is None else ctypes.byref(worth), *sizes)
        return output

    def _room(self, rows: Tensor, outputs: int) -> Tensor:
        """Room for [rows, outputs] of the rows' dtype.

        That of logits is kept: small blocks settle in freed ones of tens of megabytes, and new ones cost a page
        fault for every 4 KiB.
        """
        if outputs < self._many_outputs:
            return rows.new_empty(len(rows), outputs)
        num_bytes = len(rows) * outputs * rows.itemsize
        if num_bytes > len(self._logits):
            self._logits = large_pages(num_bytes)
        return self._logits[:num_bytes].view(rows.dtype).view(len(rows), outputs)

    def quantise(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [rows, size] as bytes around 128, and each row's scale [rows]: rows ~ (bytes - 128) * scale."""
        rows = rows.contiguous()
        num_rows, size = rows.shape
        quantised = rows.new_empty(num_rows, size, dtype=torch.uint8)
        scales = rows.new_empty(num_rows, dtype=torch.float32)
        self._quantise(
            pointer(quantised), pointer(scales), pointer(rows), ctypes.c_int64(num_rows), ctypes.c_int64(size)
        )
        return quantised, scales

    def finish(
        self, products: Tensor, scales: Tensor, bias: Tensor | None, after: After, outputs: int, other: Tensor | None
    ) -> Tensor:
        """fp32 products [rows, size] times each row's scale, plus bias [size], and what follows.

        Returns [rows, outputs] in the model's dtype.
        """
        output = products.new_empty(len(products), outputs, dtype=self.dtype)
        self._finish(
            pointer(output), pointer(products), pointer(scales), pointer(bias),
            pointer(None if other is None else other.contiguous()),
            ctypes.c_int64(len(products)), ctypes.c_int64(outputs), ctypes.c_int64(after.value),
        )  # fmt: skip
        return output


def _filled(rows: Tensor, weights: Panels) -> Tensor:
    """Rows [rows, in_features] with as many zeros as the weights have."""
    missing = weights.inputs - rows.shape[1]
    return F.pad(rows, (0, missing)) if missing else rows


def fastest_products(library: ctypes.CDLL, dtype: torch.dtype) -> str:
    """Which products are fastest here; a processor's are always the same ones, so its answers are too."""
    if dtype is torch.float32:
        return "multiply_f32"
    if library.may_use_amx():
        return "multiply_bf16_amx"
    return "multiply_bf16_pairs" if library.pairs_are_fast() else "multiply_bf16_widened"


def _as_asked(params: GenerationParams) -> tuple[float, float]:
    """Temperature and top_p of sampling.c; a greedy row has a temperature of 0."""
    if params.strategy is Strategy.GREEDY:
        return 0.0, 1.0
    return params.temperature, params.top_p if params.strategy is Strategy.NUCLEUS else 1.0


def cpu_kernels(dtype: torch.dtype) -> CpuKernels | None:
    """The kernels for the dtype, or None where they cannot be built."""
    library = cpu_library() if dtype in _SUFFIXES else None
    return None if library is None else CpuKernels(library, dtype)
