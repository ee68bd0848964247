"""A layer's kernels beside attention: beside Torch's operations, and their times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bound import Ceilings
from benchmarks.gpu.setting import Setting
from worker.engine.cuda.kernels.matmul import matmul, matmul_bytes
from worker.engine.cuda.kernels.rms_norm import rms_norm, rms_norm_bytes
from worker.engine.cuda.kernels.rotation import rotate_and_write, rotation_bytes
from worker.engine.cuda.kernels.swiglu import swiglu, swiglu_bytes
from worker.engine.cuda.layers.layer_kernels import LayerKernels, LayerSizes, largest_difference
from worker.engine.model.layer_modules import TOLERANCES
from worker.engine.model.row_operations import HeadNorms, RMSNorm, Rotation


def sizes_of(config: Any) -> LayerSizes:
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return LayerSizes(
        config.hidden_size, config.intermediate_size, config.num_attention_heads, config.num_key_value_heads, dim
    )


def compare(setting: Setting, dtype: torch.dtype) -> None:
    """All kernels, and whether a matmul's bits are the same for one row and for several."""
    sizes = sizes_of(setting.config())
    # The interpreter multiplies no bf16, and takes minutes for the tiles that fill a GPU.
    has_matmul = not setting.is_tiny
    difference = largest_difference(LayerKernels(), setting.device, dtype, sizes, has_matmul=has_matmul)
    setting.tell(f"layer kernels, {dtype}: largest difference {difference:.1e}", difference <= TOLERANCES[dtype])


def time_all(setting: Setting, ceilings: Ceilings) -> None:
    """At the rows of a full decode step, in bf16."""
    rows, sizes = (2 if setting.is_tiny else setting.max_num_seqs), sizes_of(setting.config())

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device=setting.device).to(torch.bfloat16)

    hidden, weight = randn(rows, sizes.hidden), randn(sizes.hidden)
    _time(setting, ceilings, "rms_norm", lambda: rms_norm(hidden, weight, 1e-6), rms_norm_bytes(rows, sizes.hidden, 2))
    gate_up = randn(rows, 2 * sizes.intermediate)
    _time(setting, ceilings, "swiglu", lambda: swiglu(gate_up), swiglu_bytes(rows, sizes.intermediate, 2))
    num_all = sizes.num_heads + 2 * sizes.num_kv_heads
    heads, norm = randn(rows, num_all, sizes.head_dim), RMSNorm(randn(sizes.head_dim), 1e-6)
    rotation, slots = Rotation(*(randn(rows, 1, sizes.head_dim) for _ in range(2))), torch.arange(rows).to(heads.device)
    pools = randn(rows, sizes.num_kv_heads, sizes.head_dim), randn(rows, sizes.num_kv_heads, sizes.head_dim)
    _time(
        setting, ceilings, "rotation",
        lambda: rotate_and_write(heads, HeadNorms(norm, norm), rotation, slots, pools),
        rotation_bytes(rows, num_all, sizes.head_dim, 2, has_norms=True),
    )  # fmt: skip
    if not setting.is_tiny:
        _time_matmul(setting, ceilings, hidden, randn(2 * sizes.intermediate, sizes.hidden))
        activated = gate_up[:, : sizes.intermediate].contiguous()
        _time_matmul(setting, ceilings, activated, randn(sizes.hidden, sizes.intermediate))


def _time_matmul(setting: Setting, ceilings: Ceilings, rows: Tensor, weight: Tensor) -> None:
    moved = matmul_bytes(len(rows), weight.shape[0], weight.shape[1], rows.itemsize)
    _time(setting, ceilings, f"own matmul {tuple(weight.shape)}", lambda: matmul(rows, weight), moved)
    least = weight.numel() * rows.itemsize
    _time(setting, ceilings, f"cuBLAS     {tuple(weight.shape)}", lambda: rows @ weight.t(), least)


def _time(setting: Setting, ceilings: Ceilings, name: str, action: Callable[[], object], moved: int) -> None:
    spent = setting.milliseconds(action)
    print(f"{name:28} {spent:.4f} ms; its bytes {1000 * moved / ceilings.bandwidth:.4f} ms", flush=True)
