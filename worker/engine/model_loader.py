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
from transformers import AutoConfig

from models.checkpoint.adapter import check_adapter
from models.checkpoint.config import packing_problem, text_part
from models.checkpoint.folder import check_folder
from models.checkpoint.hub import model_folder
from models.checkpoint.paths.verdict import Verdict
from models.checkpoint.small_files import CheckpointProblem, is_library_error, one_line, read_json_object
from models.states import Quantization
from worker.engine.backend import DeviceModel, LoadOptions
from worker.engine.config import ModelLimits
from worker.engine.device_selection import backend_for, choose_device, choose_dtype
from worker.engine.loading.adapter import merge_adapter
from worker.engine.loading.checked_path import checked_path
from worker.engine.loading.prepare import load_packed
from worker.engine.loading.size_check import check_size
from worker.engine.loading.weights import read_model
from worker.engine.request import EngineError, ModelUnavailable
from worker.engine.text.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)

OTHER_SHAPES = (
    "its weights have other shapes than its configuration asks for; they are of different models, download both again"
)
CHAT_END_TOKEN = "<|im_end|>"

#: The names of the longest sequence in configurations; a model that has none of them takes any length.
WINDOW_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length", "seq_length", "n_ctx")
UNBOUNDED_WINDOW = 2**20


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, ready for an engine."""

    limits: ModelLimits
    config: Any  # PreTrainedConfig
    tokenizer: Any  # PreTrainedTokenizerBase, or None where the folder has none
    model: DeviceModel
    folder: Path | None = None  # of its files; None for a model made in memory
    adapter: Path | None = None  # that was merged into it
    verdict: Verdict | None = None  # on its path; None for a model made in memory

    def shortened(self, max_model_len: int | None) -> LoadedModel:
        """The model with a context window of at most so many tokens."""
        window = min(self.limits.context_window, max_model_len or self.limits.context_window)
        return replace(self, limits=replace(self.limits, context_window=window))


def load_model(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    *,
    deterministic: bool = False,
    quantize: Quantization = "none",
    allow_slow: bool = False,
    adapter: str | None = None,
    max_model_len: int | None = None,
) -> LoadedModel:
    """The model in inference mode on its device; `name` is a folder or a hub id. Longer sequences are not decoded.

    `device` may be several, `cuda:0+cuda:1`: Transformers' device map then spreads the layers over all visible ones.
    """
    options = LoadOptions(deterministic, quantize, is_spread="+" in device, allow_slow=allow_slow)
    target = choose_device(device.split("+")[0])
    if options.is_spread and importlib.util.find_spec("accelerate") is None:
        raise ModelUnavailable(
            "a model over several devices needs the accelerate package; pip install 'nocturne[spread]'"
        )
    with _as_model_unavailable(f"cannot load the model {name!r}"):
        folder = model_folder(name, with_weights=True)
        check_folder(folder)
        if adapter is not None:
            check_adapter(Path(adapter))
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        number_type = choose_dtype(dtype, target)
        backend_for(target).prepare_process(number_type, options)
        verdict = _verdict(folder, config, target, options, max_model_len)
        if verdict.path == "refused":
            raise ModelUnavailable(f"{name!r} cannot be decoded correctly: {verdict.reason}")
        options = replace(options, is_packed=verdict.path == "packed")
        check_size(
            name, folder, read_json_object(folder / "config.json"), config, number_type, _devices(target, options)
        )
        model = read_model(name, folder, config, number_type, options)
        if adapter is not None:
            merge_adapter(model, Path(adapter))
        with _as_model_unavailable(f"cannot load the tokenizer of {name!r}"):
            tokenizer = load_tokenizer(str(folder))
        loaded = prepare_model(name, model, tokenizer, target, options)
        loaded = loaded.shortened(max_model_len)
        return replace(loaded, folder=folder, verdict=verdict, adapter=None if adapter is None else Path(adapter))


def prepare_model(
    name: str, model: Any, tokenizer: Any, device: torch.device, options: LoadOptions = LoadOptions()
) -> LoadedModel:
    """Moves, probes and packs a model that is already in memory; its own layers are of no use afterwards."""
    backend = backend_for(device)
    backend.prepare_process(model.dtype, options)
    if options.quantize != "none" and not (options.is_packed and backend.can_quantize(model, options)):
        raise ModelUnavailable(
            f"{name!r} cannot be quantized here: int8 needs a CPU, a C compiler and a model of Llama's family"
        )
    model = (model if options.is_spread else model.to(device)).eval().requires_grad_(False)
    config = model.config.get_text_config()
    if getattr(config, "decoder_vocab_size", None) not in (None, config.vocab_size):
        raise ModelUnavailable(f"{name!r} decodes to another vocabulary than it reads; not supported")
    limits = ModelLimits(
        name=name,
        context_window=context_window(config),
        vocab_size=config.vocab_size,
        eos_token_ids=default_eos_ids(model, tokenizer),
        has_tokenizer=tokenizer is not None,
        dtype=str(model.dtype).removeprefix("torch."),
    )
    if options.is_packed:
        prepared = load_packed(name, model, backend, device, options)
    else:
        prepared = backend.load_unpacked(model, device, options)
    return LoadedModel(limits, model.config, tokenizer, prepared)


def _devices(target: torch.device, options: LoadOptions) -> list[torch.device]:
    """The devices that hold the weights: a spread model is on all that are visible."""
    return (
        [torch.device("cuda", index) for index in range(torch.cuda.device_count())] if options.is_spread else [target]
    )


def _verdict(
    folder: Path, config: Any, device: torch.device, options: LoadOptions, max_model_len: int | None
) -> Verdict:
    """The path on which the model is decoded, from the self check of this or an earlier load."""
    given = read_json_object(folder / "config.json")
    if problem := packing_problem(text_part(given), max_model_len):
        return Verdict("fallback", problem)
    return checked_path(given, config, backend_for(device), device, options)


def context_window(config: Any) -> int:
    """Tokens of a prompt and its answer together, by the first name that an architecture has for them; XLNet has -1."""
    lengths = (getattr(config, name, None) for name in WINDOW_NAMES)
    return next((length for length in lengths if isinstance(length, int) and length > 0), UNBOUNDED_WINDOW)


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
