"""Loads a Transformers causal language model, from a folder or a hub, ready for our attention.

Only safetensors and no code from the model's repository. Raises `ModelUnavailable` with what to do.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from models.states import Quantization
from worker.engine.batch_invariance import align_activations, initialize_vector_math
from worker.engine.config import ModelLimits
from worker.engine.cpu.allocator import keep_freed_memory
from worker.engine.cpu.attention import cpu_attention
from worker.engine.cpu.kernels import CpuKernels, cpu_kernels
from worker.engine.cpu.linear import GemmLinear, GemmModule, Int8GemmLinear
from worker.engine.cpu.onednn_linear import OneDnnInt8Linear, OneDnnLinear, can_pack, keep_onednn_from_amx
from worker.engine.cuda.paged_attention import PAGE_SIZE, varlen_attention
from worker.engine.model.attention import ATTENTION_NAME, AttentionStep, PagedAttention, ShapeProbe
from worker.engine.model.fused_decoder import FusedDecoder, PlainRowOperations, can_fuse
from worker.engine.model.kv_cache import LayerShape
from worker.engine.model.linear import MakeLinear, PlainLinear
from worker.engine.model.replace_modules import replace_linears
from worker.engine.model.transformers_decoder import TransformersDecoder
from worker.engine.request import ModelUnavailable
from worker.engine.sampling.batch_sampler import ChooseBatch, LaunchBatch, choose_batch, launch_batch

#: Rope variants whose angles depend on the longest sequence of the batch.
BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")

CHAT_END_TOKEN = "<|im_end|>"

CPU_BLOCK_SIZE = 64

#: A step's rows to the logits [num_logits, vocab] that the step asks for.
Decoder = Callable[[AttentionStep], Tensor]


@dataclass(frozen=True)
class LoadedModel:
    """A model with what the engine must know of it."""

    limits: ModelLimits
    config: Any  # PreTrainedConfig
    decoder: Decoder
    paged_attention: PagedAttention | None  # None: attention goes through SDPA's tiles
    choose_batch: ChooseBatch | None  # None: tokens are chosen a few rows at a time
    launch_batch: LaunchBatch | None  # where the next step may begin before the last one's tokens are known
    tokenizer: Any  # PreTrainedTokenizerBase, or None where the folder has none
    device: torch.device
    dtype: torch.dtype
    layers: dict[int, LayerShape]
    gemm: str  # which one the decoder uses, for the provenance of results
    block_size: int  # tokens in a KV block, where nothing else is asked for
    needs_fixed_sizes: bool = False  # answers are to be independent of the batch, and matmuls depend on their size
    is_spread: bool = False  # over several devices


def load_model(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    *,
    deterministic: bool = False,
    quantize: Quantization = "none",
) -> LoadedModel:
    """The model in inference mode on its device; `name` is a folder or a hub id.

    `device` may be several, `cuda:0+cuda:1`: Transformers' device map then spreads the layers over all visible ones.
    """
    is_spread = "+" in device
    target = choose_device(device.split("+")[0])
    chosen = choose_dtype(dtype, target)
    if is_spread and importlib.util.find_spec("accelerate") is None:
        raise ModelUnavailable("a model over several devices needs the accelerate package; pip install accelerate")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        check_config(name, config)
        model = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=chosen,
            attn_implementation=ATTENTION_NAME,
            use_safetensors=True,
            trust_remote_code=False,
            **({"device_map": "balanced"} if is_spread else {}),
        )
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"cannot load the model {name!r}: {_first_line(error)}") from error
    return prepare_model(
        name,
        model,
        load_tokenizer(name),
        target,
        deterministic=deterministic,
        is_spread=is_spread,
        quantize=quantize,
    )


def prepare_model(
    name: str,
    model: Any,
    tokenizer: Any,
    device: torch.device,
    *,
    fuse: bool = True,
    use_kernels: bool = True,
    deterministic: bool = False,
    is_spread: bool = False,
    quantize: Quantization = "none",
) -> LoadedModel:
    """Moves, probes and packs a model that is already in memory; its own layers are of no use afterwards.

    Without `fuse` the model runs through Transformers' own layers, as one does that has no fused decoder or is spread
    over several devices; without `use_kernels` on torch's operations alone, as where there is no C compiler.
    """
    check_config(name, model.config)
    kernels = cpu_kernels(model.dtype) if use_kernels and device.type == "cpu" else None
    if device.type == "cpu":
        keep_freed_memory()
        initialize_vector_math()
        if kernels is None or not kernels.has_matmul:
            keep_onednn_from_amx()
    model.set_attn_implementation(ATTENTION_NAME)
    model = (model if is_spread else model.to(device)).eval().requires_grad_(False)
    config = model.config.get_text_config()
    layers = probe_layers(name, model, device)
    is_fused = fuse and not is_spread and can_fuse(model)
    if quantize == "int8":
        if kernels is None or not is_fused:
            raise ModelUnavailable(
                f"{name!r} cannot be quantized here: int8 needs a CPU, a C compiler and a model of Llama's family"
            )
        decoder, gemm = _int8_decoder(model, kernels)
    else:
        decoder, gemm = _make_decoder(model, device, kernels, fuse=is_fused)
    paged_attention: PagedAttention | None = None
    if device.type == "cpu" and use_kernels:
        paged_attention = cpu_attention(model.dtype, layers.values(), config.num_attention_heads)
    if device.type == "cuda" and use_kernels:
        paged_attention = varlen_attention(
            device, model.dtype, layers[0], config.num_attention_heads, is_deterministic=deterministic
        )
    choose = None if kernels is None else kernels.sample
    if device.type == "cuda":
        choose = choose_batch
    if getattr(config, "attn_logit_softcapping", None) is not None:
        paged_attention = None
    return LoadedModel(
        limits=ModelLimits(
            name=name,
            context_window=config.max_position_embeddings,
            vocab_size=config.vocab_size,
            eos_token_ids=default_eos_ids(model, tokenizer),
            has_tokenizer=tokenizer is not None,
        ),
        config=model.config,
        decoder=decoder,
        paged_attention=paged_attention,
        choose_batch=choose,
        launch_batch=launch_batch if device.type == "cuda" else None,
        tokenizer=tokenizer,
        device=device,
        dtype=model.dtype,
        layers=layers,
        gemm=gemm,
        block_size=PAGE_SIZE if device.type == "cuda" else CPU_BLOCK_SIZE,
        needs_fixed_sizes=deterministic and device.type != "cpu",
        is_spread=is_spread,
    )


def _make_decoder(model: Any, device: torch.device, kernels: CpuKernels | None, *, fuse: bool) -> tuple[Decoder, str]:
    """The decoder, and the name of its gemm."""
    own = kernels if kernels is not None and kernels.has_matmul else None
    is_packed = device.type == "cpu" and can_pack(model.dtype)
    gemm = f"own gemm, {own.matmul_name}" if own else "oneDNN gemm" if is_packed else "torch gemm"
    if fuse:
        make_linear: MakeLinear = OneDnnLinear if is_packed else PlainLinear
        if own is not None:
            make_linear = partial(GemmLinear, kernels=own)
        return FusedDecoder(model, make_linear, kernels or PlainRowOperations()), f"fused decoder, {gemm}"
    if device.type == "cpu":
        align_activations(model)
    if own is not None:
        replace_linears(model, partial(GemmModule, kernels=own))
    elif is_packed:
        replace_linears(model, lambda linear: OneDnnLinear([linear]))
    return TransformersDecoder(model), gemm


def _int8_decoder(model: Any, kernels: CpuKernels) -> tuple[Decoder, str]:
    """The decoder, and the name of its gemm."""
    linear = Int8GemmLinear if kernels.has_int8_matmul else OneDnnInt8Linear
    gemm = f"own gemm, {kernels.int8_matmul_name}" if kernels.has_int8_matmul else "oneDNN int8 gemm"
    return FusedDecoder(model, partial(linear, kernels=kernels), kernels), f"fused decoder, {gemm}"


def choose_device(device: str) -> torch.device:
    """`auto` takes a CUDA device where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelUnavailable(f"device {device} was asked for, but this machine has no CUDA device; use --device cpu")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` takes bfloat16 where the device computes in it, else float32."""
    if dtype != "auto":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    has_bf16 = torch.backends.mkldnn.is_available() and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
    return torch.bfloat16 if has_bf16 else torch.float32


def check_config(name: str, config: Any) -> None:
    """Refuses what our attention would compute wrongly."""
    text_config = config.get_text_config()
    rope: Any = getattr(text_config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type")} | {part.get("rope_type") for part in rope.values() if isinstance(part, dict)}
    if kinds & set(BATCH_DEPENDENT_ROPE):
        raise ModelUnavailable(f"{name!r} uses {kinds} rotary positions, which depend on the batch; not supported")
    layer_types = set(getattr(text_config, "layer_types", None) or ["full_attention"])
    if unsupported := layer_types - {"full_attention", "sliding_attention"}:
        raise ModelUnavailable(f"{name!r} has layers of type {', '.join(sorted(unsupported))}; not supported")


def probe_layers(name: str, model: Any, device: torch.device) -> dict[int, LayerShape]:
    """Runs one token through the model to see what each layer wants to keep."""
    probe = ShapeProbe()
    ids = torch.zeros((1, 2), dtype=torch.long, device=device)
    with torch.inference_mode():
        model(input_ids=ids, position_ids=torch.arange(2, device=device)[None], use_cache=False, nocturne_step=probe)
    if len(probe.layers) != model.config.get_text_config().num_hidden_layers:
        raise ModelUnavailable(f"the attention of {name!r} ({type(model).__name__}) cannot be replaced; not supported")
    return probe.layers


def load_tokenizer(name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"cannot load the tokenizer of {name!r}: {_first_line(error)}") from error


def default_eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The generation config's end ids, and the chat's end token where the tokenizer has one."""
    configured = model.generation_config.eos_token_id
    ids = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    if tokenizer is not None:
        chat_end = tokenizer.convert_tokens_to_ids(CHAT_END_TOKEN)
        if chat_end is not None and chat_end != tokenizer.unk_token_id:
            ids.append(chat_end)
    return tuple(dict.fromkeys(ids))


def describe_environment(loaded: LoadedModel) -> dict[str, Any]:
    """Where its results come from: the columns of the `environments` table but for the id."""
    return {
        "model": loaded.limits.name,
        "weights_hash": _hash_files(loaded, "*.safetensors"),
        "tokenizer_hash": _hash_files(loaded, "tokenizer*"),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": _device_name(loaded.device),
        "attention": f"{'sdpa tiles' if loaded.paged_attention is None else 'paged kernel'}, {loaded.gemm}",
        "versions": {"torch": str(torch.__version__), "transformers": transformers.__version__},
    }


def _hash_files(loaded: LoadedModel, pattern: str) -> str:
    """A hash over the files of a model folder; for a hub model its commit."""
    folder = Path(loaded.limits.name)
    if not folder.is_dir():
        return str(getattr(loaded.config, "_commit_hash", None) or "unknown")
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.glob(pattern)):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
