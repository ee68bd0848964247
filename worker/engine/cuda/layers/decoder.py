"""A model's layers on a GPU: fused ones on our kernels, or Transformers' own with modules of ours among them."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from worker.engine.backend import Decoder, DeviceModel, LoadOptions
from worker.engine.cuda.layers.linear import BatchInvariantLinear, BatchInvariantModule, CublasLinear
from worker.engine.cuda.layers.recurrent import enter_delta_rules
from worker.engine.cuda.layers.row_wise import other_operations, recurrent_layers
from worker.engine.model.fused_decoder import FusedDecoder
from worker.engine.model.kv_cache import LayerShape
from worker.engine.model.layer_modules import TOLERANCES, replace_modules
from worker.engine.model.linear import MakeLinear
from worker.engine.model.replace_modules import replace_linears
from worker.engine.model.transformers_decoder import TransformersDecoder
from worker.engine.out_of_memory import first_line, is_out_of_memory

if TYPE_CHECKING:  # Triton is there where torch has CUDA
    from worker.engine.cuda.layers.layer_kernels import LayerKernels, LayerSizes

logger = logging.getLogger(__name__)


def checked_kernels(
    model: Any, layers: dict[int, LayerShape], device: torch.device, options: LoadOptions
) -> LayerKernels | None:
    """The layer's kernels, if they compute correctly on this device; else a warning, for torch's operations are slower.

    Of a model on several devices None: a kernel is launched on the current one.
    """
    if not options.use_kernels or options.is_spread:
        return None
    try:
        from worker.engine.cuda.layers import layer_kernels

        kernels = layer_kernels.LayerKernels()
        sizes = _sizes_of(model.config.get_text_config(), layers)
        difference = layer_kernels.largest_difference(
            kernels, device, model.dtype, sizes, has_matmul=options.deterministic
        )
    # A compiler fails in ways of its own, and no list of them is complete.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        problem = f"they cannot be compiled, {type(error).__name__}: {first_line(error)[:200]}"
    else:
        if difference <= TOLERANCES[model.dtype]:  # NaN is no small difference
            return kernels
        problem = f"their results differ from torch's by {difference:.3g}"
    logger.warning("layers go through torch's operations, which are more and slower, without our kernels: %s", problem)
    return None


def load_with_kernels(
    model: Any, layers: dict[int, LayerShape], device: torch.device, options: LoadOptions, kernels: LayerKernels
) -> DeviceModel:
    """The model, ready to decode. Steps have fixed sizes where `deterministic` is asked for and cannot do without."""
    linear = BatchInvariantLinear if options.deterministic else CublasLinear
    make_linear: MakeLinear = partial(linear, kernels=kernels)
    gemm = "own gemm" if options.deterministic else "torch gemm"
    decoder: Decoder
    others = recurrent_layers(model) if options.deterministic else set()
    enter_delta_rules(model, device)
    if options.can_fuse(model):
        decoder, gemm = FusedDecoder(model, make_linear, kernels), f"fused decoder, {gemm}"
    else:
        replace_modules(model, kernels, make_linear)
        if options.deterministic:
            replace_linears(model, partial(BatchInvariantModule, kernels=kernels))
            others = others or other_operations(model, device)
        decoder = TransformersDecoder(model)
    if others:
        named = ", ".join(sorted(others)[:5])
        logger.warning(
            "steps are padded to fixed sizes, as the order of these depends on the number of rows: %s", named
        )
    return DeviceModel(
        device=device, dtype=model.dtype, layers=layers, decoder=decoder, gemm=gemm, needs_fixed_sizes=bool(others)
    )


def _sizes_of(config: Any, layers: dict[int, LayerShape]) -> LayerSizes:
    """The sizes of the model's layers, where its configuration names them; a rotation needs an even head size."""
    from worker.engine.cuda.layers.layer_kernels import LayerSizes

    shape = next(iter(layers.values()), LayerShape(1, 64, 64))
    return LayerSizes(
        hidden=_size(config, "hidden_size", 64),
        intermediate=_size(config, "intermediate_size", 64),
        num_heads=_size(config, "num_attention_heads", shape.num_kv_heads),
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.key_dim if shape.key_dim % 2 == 0 else 64,
    )


def _size(config: Any, name: str, otherwise: int) -> int:
    size = getattr(config, name, None)
    return size if isinstance(size, int) else otherwise
