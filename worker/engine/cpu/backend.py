"""Steps on a CPU: our kernels where they can be built, oneDNN's packed weights elsewhere, then torch's operations."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from worker.engine.backend import Backend, Decoder, DeviceModel, LoadOptions
from worker.engine.batch_invariance import align_activations, initialize_vector_math
from worker.engine.cpu.allocator import keep_freed_memory
from worker.engine.cpu.attention import cpu_attention
from worker.engine.cpu.kernels import CpuKernels, cpu_kernels
from worker.engine.cpu.linear import GemmLinear, GemmModule, Int8GemmLinear
from worker.engine.cpu.onednn_linear import OneDnnInt8Linear, OneDnnLinear, can_pack, keep_onednn_from_amx
from worker.engine.model.attention import PagedAttention, has_softcap
from worker.engine.model.batch_invariant_mode import BatchInvariantMode
from worker.engine.model.experts import pack_experts
from worker.engine.model.fused_decoder import FusedDecoder
from worker.engine.model.kv_cache import LayerShape
from worker.engine.model.layer_modules import replace_modules
from worker.engine.model.linear import Linear, MakeLinear, PlainLinear
from worker.engine.model.recurrent.delta_net import PackedDeltaNet, enter_rule
from worker.engine.model.recurrent.mixer import RecurrentMixer
from worker.engine.model.replace_modules import replace_linears
from worker.engine.model.row_operations import PlainRowOperations
from worker.engine.model.transformers_decoder import TransformersDecoder
from worker.engine.model.unregistered_experts import pack_unregistered_experts


class CpuBackend(Backend):
    """Does the base's steps, which are batch-invariant with any options."""

    @classmethod
    def prepare_process(cls, dtype: torch.dtype, options: LoadOptions) -> None:
        keep_freed_memory()
        initialize_vector_math()
        kernels = _kernels(dtype, options)
        if kernels is None or not kernels.has_matmul:
            keep_onednn_from_amx()

    @classmethod
    def can_quantize(cls, model: Any, options: LoadOptions) -> bool:
        return _kernels(model.dtype, options) is not None and options.can_fuse(model)

    @classmethod
    def load(cls, model: Any, layers: dict[int, LayerShape], device: torch.device, options: LoadOptions) -> DeviceModel:
        kernels = _kernels(model.dtype, options)
        if kernels is not None:
            enter_rule(model, kernels.delta_rule)
        if options.quantize == "int8":
            assert kernels is not None, "quantized without kernels"
            decoder, gemm = _int8_decoder(model, kernels)
        elif options.can_fuse(model):
            decoder, gemm = _fused_decoder(model, kernels)
        else:
            decoder, gemm = _transformers_decoder(model, kernels)
        return DeviceModel(
            device=device,
            dtype=model.dtype,
            layers=layers,
            decoder=decoder,
            gemm=gemm,
            paged_attention=_paged_attention(model, layers) if options.use_kernels else None,
            sample_batch=None if kernels is None else kernels.sample,
            is_spread=options.is_spread,
        )


def _kernels(dtype: torch.dtype, options: LoadOptions) -> CpuKernels | None:
    return cpu_kernels(dtype) if options.use_kernels else None


def _paged_attention(model: Any, layers: dict[int, LayerShape]) -> PagedAttention | None:
    if not layers or has_softcap(model):
        return None
    return cpu_attention(model.dtype, layers.values(), model.config.get_text_config().num_attention_heads)


def _int8_decoder(model: Any, kernels: CpuKernels) -> tuple[Decoder, str]:
    """The decoder, and the name of its gemm."""
    linear = Int8GemmLinear if kernels.has_int8_matmul else OneDnnInt8Linear
    gemm = f"own gemm, {kernels.int8_matmul_name}" if kernels.has_int8_matmul else "oneDNN int8 gemm"
    return FusedDecoder(model, partial(linear, kernels=kernels), kernels), f"fused decoder, {gemm}"


def _fused_decoder(model: Any, kernels: CpuKernels | None) -> tuple[Decoder, str]:
    """The decoder, and the name of its gemm."""
    decoder = FusedDecoder(model, _make_linear(model.dtype, kernels), kernels or PlainRowOperations())
    return decoder, f"fused decoder, {_gemm_name(model.dtype, kernels)}"


def _transformers_decoder(model: Any, kernels: CpuKernels | None) -> tuple[Decoder, str]:
    """The decoder, and the name of its gemm."""
    align_activations(model)
    make_linear = _make_linear(model.dtype, kernels)
    num_experts = pack_experts(model, make_linear) + pack_unregistered_experts(model, make_linear)
    has_states = any(isinstance(module, RecurrentMixer) for module in model.modules())
    if kernels is not None and any(isinstance(module, PackedDeltaNet) for module in model.modules()):
        replace_modules(model, kernels, _make_linear(model.dtype, kernels))
    if kernels is not None and kernels.has_matmul:
        replace_linears(model, partial(GemmModule, kernels=kernels))
    elif can_pack(model.dtype):
        replace_linears(model, lambda linear: OneDnnLinear([linear]))
    mode = BatchInvariantMode(partial(_packed_linear, kernels=kernels)) if num_experts or has_states else None
    return TransformersDecoder(model, mode), _gemm_name(model.dtype, kernels)


def _make_linear(dtype: torch.dtype, kernels: CpuKernels | None) -> MakeLinear:
    if kernels is not None and kernels.has_matmul:
        return partial(GemmLinear, kernels=kernels)
    return OneDnnLinear if can_pack(dtype) else PlainLinear


def _packed_linear(linear: nn.Linear, kernels: CpuKernels | None) -> Linear:
    """A layer in its own dtype, which for routers is often fp32 in a model of bf16."""
    dtype = linear.weight.dtype
    if kernels is not None and kernels.dtype is not dtype:
        kernels = cpu_kernels(dtype)
    return _make_linear(dtype, kernels)([linear])


def _gemm_name(dtype: torch.dtype, kernels: CpuKernels | None) -> str:
    if kernels is not None and kernels.has_matmul:
        return f"own gemm, {kernels.matmul_name}"
    return "oneDNN gemm" if can_pack(dtype) else "torch gemm"
