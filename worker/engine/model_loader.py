"""Loads a Transformers causal language model, from a folder or a hub, ready for our attention.

Takes safetensors only, and no code from the model's repository. Every failure is a `ModelUnavailable` that says what
to do.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from models.checkpoint.config import attention_problem
from models.checkpoint.folder import check_folder
from models.checkpoint.hub import model_folder
from models.checkpoint.small_files import CheckpointProblem, is_library_error, one_line
from models.states import Quantization
from worker.engine.backend import DeviceModel, LoadOptions
from worker.engine.config import ModelLimits
from worker.engine.device_selection import backend_for, choose_device, choose_dtype
from worker.engine.model.attention import ATTENTION_NAME, ShapeProbe
from worker.engine.model.kv_cache import LayerShape
from worker.engine.model.recurrent.probe import StateProbe
from worker.engine.model.recurrent.state_pool import StateLayout
from worker.engine.model.replace_modules import watch_linears
from worker.engine.request import EngineError, ModelUnavailable
from worker.engine.text.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)

OTHER_SHAPES = (
    "its weights have other shapes than its configuration asks for; they are of different models, download both again"
)
CHAT_END_TOKEN = "<|im_end|>"


#: Of a model without positions, whose state has one size however long a sequence is.
UNBOUNDED_WINDOW = 2**20

#: Layer types without any memory of the tokens before.
FEED_FORWARD_LAYERS = ("mlp", "moe")


@dataclass(frozen=True)
class ModelShape:
    """The memory that a model keeps of a sequence, layer by layer."""

    layers: dict[int, LayerShape]
    states: StateLayout


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, ready for an engine."""

    limits: ModelLimits
    config: Any  # PreTrainedConfig
    tokenizer: Any  # PreTrainedTokenizerBase, or None where the folder has none
    model: DeviceModel
    folder: Path | None = None  # of its files; None for a model made in memory


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
    options = LoadOptions(deterministic=deterministic, quantize=quantize, is_spread="+" in device)
    target = choose_device(device.split("+")[0])
    if options.is_spread and importlib.util.find_spec("accelerate") is None:
        raise ModelUnavailable("a model over several devices needs the accelerate package; pip install accelerate")
    with _as_model_unavailable(f"cannot load the model {name!r}"):
        folder = model_folder(name, with_weights=True)
        check_folder(folder)
        model = _read_model(name, folder, choose_dtype(dtype, target), is_spread=options.is_spread)
        with _as_model_unavailable(f"cannot load the tokenizer of {name!r}"):
            tokenizer = load_tokenizer(str(folder))
        return replace(prepare_model(name, model, tokenizer, target, options), folder=folder)


def prepare_model(
    name: str, model: Any, tokenizer: Any, device: torch.device, options: LoadOptions = LoadOptions()
) -> LoadedModel:
    """Moves, probes and packs a model that is already in memory; its own layers are of no use afterwards."""
    check_config(name, model.config)
    backend = backend_for(device)
    backend.prepare_process(model.dtype, options)
    if options.quantize != "none" and not backend.can_quantize(model, options):
        raise ModelUnavailable(
            f"{name!r} cannot be quantized here: int8 needs a CPU, a C compiler and a model of Llama's family"
        )
    model.set_attn_implementation(ATTENTION_NAME)
    model = (model if options.is_spread else model.to(device)).eval().requires_grad_(False)
    shape = probe_layers(name, model, device)
    config = model.config.get_text_config()
    limits = ModelLimits(
        name=name,
        context_window=getattr(config, "max_position_embeddings", UNBOUNDED_WINDOW),
        vocab_size=config.vocab_size,
        eos_token_ids=default_eos_ids(model, tokenizer),
        has_tokenizer=tokenizer is not None,
        dtype=str(model.dtype).removeprefix("torch."),
    )
    loaded = replace(backend.load(model, shape.layers, device, options), states=shape.states)
    return LoadedModel(limits, model.config, tokenizer, loaded)


def _read_model(name: str, folder: Path, dtype: torch.dtype, *, is_spread: bool) -> Any:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    check_config(name, config)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        attn_implementation=ATTENTION_NAME,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **({"device_map": "balanced"} if is_spread else {}),
    )
    model, loading = loaded
    if absent := sorted(loading["missing_keys"]):  # Transformers would go on with random ones
        raise ModelUnavailable(
            f"the weights of {name!r} lack {len(absent):,} tensors of its configuration, such as {absent[0]}; "
            "config and weights are of different models, download both again"
        )
    if folder.parent.name == "snapshots":  # of the hub's cache, where a folder has the name of its commit
        model.config._commit_hash = folder.name
    return model


def check_config(name: str, config: Any) -> None:
    """Raises `ModelUnavailable` for a model that our attention would compute wrongly."""
    if problem := attention_problem(config.get_text_config().to_dict()):
        raise ModelUnavailable(f"{name!r}: {problem}")


def probe_layers(name: str, model: Any, device: torch.device) -> ModelShape:
    """Runs two tokens through the model to see what each layer keeps; wraps the layers that keep a recurrent state."""
    probe, states = ShapeProbe(), StateProbe()
    ids = torch.zeros((1, 2), dtype=torch.long, device=device)
    positions = torch.arange(2, device=device)[None]
    with torch.inference_mode(), watch_linears(model), states.watching(model):
        model(input_ids=ids, position_ids=positions, nocturne_step=probe, **states.arguments(model))
    layout = _state_layout(states, probe)
    if len(probe.layers.keys() | states.state_layers) != _num_layers_with_memory(model.config.get_text_config()):
        raise ModelUnavailable(f"the attention of {name!r} ({type(model).__name__}) cannot be replaced; not supported")
    states.wrap(model)
    return ModelShape(probe.layers, layout)


@torch.inference_mode()
def _state_layout(states: StateProbe, probe: ShapeProbe) -> StateLayout:
    if any(module in probe.modules for mixer in states.mixers for module in mixer.modules()):
        raise ModelUnavailable("a module keeps both a recurrent state and keys; not supported")
    return states.layout()


def _num_layers_with_memory(config: Any) -> int:
    """Layers that keep keys or a state; the others are feed-forward alone."""
    types = getattr(config, "layer_types", None) or []
    return int(config.num_hidden_layers) - sum(each in FEED_FORWARD_LAYERS for each in types)


def default_eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The generation config's end ids, and the chat's end token where the tokenizer has one."""
    configured = model.generation_config.eos_token_id
    ids = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    if tokenizer is not None:
        chat_end = tokenizer.convert_tokens_to_ids(CHAT_END_TOKEN)
        if chat_end is not None and chat_end != tokenizer.unk_token_id:
            ids.append(chat_end)
    return tuple(dict.fromkeys(ids))


@contextmanager
def _as_model_unavailable(what: str) -> Iterator[None]:
    """Makes one sentence of whatever Transformers and the libraries below it raise; each raises types of its own."""
    try:
        yield
    except EngineError:
        raise
    except CheckpointProblem as problem:
        raise ModelUnavailable(str(problem)) from problem
    except BaseException as error:
        if not is_library_error(error):
            raise
        logger.debug("%s", what, exc_info=True)
        reason = (
            OTHER_SHAPES if "ignore_mismatched_sizes" in str(error) else f"{type(error).__name__}: {one_line(error)}"
        )
        raise ModelUnavailable(f"{what}: {reason}") from error
