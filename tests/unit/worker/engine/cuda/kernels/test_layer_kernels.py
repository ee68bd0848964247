"""The kernels of a layer in Triton's interpreter: close to float64, the same bits in any batch, the bytes they say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.unit.worker.engine.cuda.conftest import MovedBytes
from worker.engine.cuda.kernels import matmul as matmul_kernels
from worker.engine.cuda.kernels.matmul import matmul, matmul_bytes, matmul_in_torch
from worker.engine.cuda.kernels.rms_norm import rms_norm, rms_norm_bytes, rms_norm_in_torch
from worker.engine.cuda.kernels.rotation import rotate_and_write, rotate_and_write_in_torch, rotation_bytes
from worker.engine.cuda.kernels.swiglu import swiglu, swiglu_bytes, swiglu_in_torch
from worker.engine.model.row_operations import HeadNorms, RMSNorm, Rotation

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

#: Relative to numbers and to sums near 1; the interpreter cuts bf16 off instead of rounding it.
TOLERANCES = {torch.float32: 5e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}


def assert_close(found: Tensor, exact: Tensor) -> None:
    tolerance = TOLERANCES[found.dtype]
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


def randn(*sizes: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "dim"), [(9, 3, 24), (4, 1, 64), (1, 1, 16)])
def test_rotation(
    dtype: torch.dtype, has_norms: bool, num_heads: int, num_kv_heads: int, dim: int, moved_bytes: MovedBytes
) -> None:
    """Queries, keys and values, each at its place and nothing beside them; heads may be part of a wider tensor."""
    num_all = num_heads + 2 * num_kv_heads
    heads = randn(5, num_all * dim + 8, dtype=dtype)[:, : num_all * dim].view(5, num_all, dim)
    rotation = Rotation(randn(5, 1, dim, dtype=dtype, seed=1), randn(5, 1, dim, dtype=dtype, seed=2))
    norms = HeadNorms(*(RMSNorm(randn(dim, dtype=dtype, seed=3 + index), 1e-6 + index) for index in range(2)))
    slots = torch.tensor([7, 0, 19, 3, 12])
    found, expected = ([torch.full((20, num_kv_heads, dim), 7.5, dtype=dtype) for _ in range(2)] for _ in range(2))
    arguments = (heads, norms if has_norms else None, rotation, slots)
    query = rotate_and_write(*arguments, (found[0], found[1]))
    exact = rotate_and_write_in_torch(*arguments, (expected[0], expected[1]))
    for output, other in ((query, exact), *zip(found, expected, strict=True)):
        assert_close(output, other.double())
    assert torch.equal(found[1], expected[1])
    assert moved_bytes.count <= rotation_bytes(5, num_all, dim, dtype.itemsize, has_norms=has_norms)
    assert moved_bytes.count >= 0.99 * rotation_bytes(5, num_all, dim, dtype.itemsize, has_norms=has_norms)
    alone = rotate_and_write(heads[3:4], arguments[1], rotation_of(rotation, 3), slots[3:4], (found[0], found[1]))
    assert torch.equal(alone, query[3:4])


def rotation_of(rotation: Rotation, row: int) -> Rotation:
    return Rotation(rotation.cos[row : row + 1], rotation.signed_sin[row : row + 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 40, 1100])
def test_swiglu(dtype: torch.dtype, size: int, moved_bytes: MovedBytes) -> None:
    gate_up = randn(3, 2 * size, dtype=dtype) * 4
    found = swiglu(gate_up)
    gate, up = gate_up.double().chunk(2, dim=1)
    for output in (found, swiglu_in_torch(gate_up)):
        assert_close(output, gate * gate.sigmoid() * up)
    assert torch.equal(swiglu(gate_up[1:2]), found[1:2])
    assert moved_bytes.count == swiglu_bytes(4, size, dtype.itemsize)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 77, 896])
def test_rms_norm(dtype: torch.dtype, size: int, moved_bytes: MovedBytes) -> None:
    rows, weight = randn(2, 3, size, dtype=dtype), randn(size, dtype=dtype, seed=1)
    found = rms_norm(rows, weight, 1e-6)
    exact = rows.double() * (rows.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double()
    for output in (found, rms_norm_in_torch(rows, weight, 1e-6)):
        assert_close(output, exact)
    assert torch.equal(rms_norm(rows[1, 1:2], weight, 1e-6), found[1, 1:2])
    assert moved_bytes.count == rms_norm_bytes(7, size, dtype.itemsize)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matmul_has_the_same_bits_for_any_number_of_rows(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, moved_bytes: MovedBytes
) -> None:
    """Close to float64 at odd sizes; a row alone, in a batch, with sections in one program or in many."""
    num_rows = 35 if dtype is torch.float32 else 131
    x, weight = randn(num_rows, 301, dtype=dtype), randn(67, 301, dtype=dtype, seed=1) / 17
    bias, residual = randn(67, dtype=dtype, seed=2), randn(num_rows, 67, dtype=dtype, seed=3)
    split = matmul(x, weight, bias, residual)
    exact = x.double() @ weight.double().T + bias.double() + residual.double()
    for output in (split, matmul_in_torch(x, weight, bias, residual)):
        assert_close(output, exact)
    assert torch.equal(matmul(x[9:10], weight, bias, residual[9:10]), split[9:10])
    before = moved_bytes.count
    plain = matmul(x, weight)
    assert moved_bytes.count - before == matmul_bytes(num_rows, 67, 301, dtype.itemsize)
    monkeypatch.setattr(matmul_kernels, "FULL", 0)
    assert torch.equal(matmul(x[3:], weight, bias, residual[3:]), split[3:])
    before = moved_bytes.count
    assert torch.equal(matmul(x, weight), plain)
    assert moved_bytes.count - before == matmul_bytes(num_rows, 67, 301, dtype.itemsize)


def test_nan_is_not_hidden() -> None:
    x = torch.ones(3, 300)
    x[1, 299] = torch.nan
    found = matmul(x, torch.ones(5, 300))
    assert found[1].isnan().all() and found[0].isfinite().all() and found[2].isfinite().all()


def test_no_rows_are_no_launch() -> None:
    empty = torch.empty(0, 16)
    assert matmul(empty, torch.ones(3, 16)).shape == (0, 3)
    assert swiglu(empty).shape == (0, 8) and rms_norm(empty, torch.ones(16), 1e-6).shape == (0, 16)
