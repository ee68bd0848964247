"""A small random model with the structure of a large one: one layer of each kind, few experts, short windows.

An architecture that our steps compute wrongly is wrong in any size, and a twin in fp32 shows it in a second, where
the rounding of the model's own bfloat16 would hide it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch

from worker.engine.loading.auto_class import auto_class, is_causal

VOCAB = 512
WINDOW = 24  # shorter than the prompts of the check, so that a window that is ignored shows
MLP_SIZE = 128
EXPERTS = 8
LAYERS = 4  # of models that do not list their layers' kinds
STACK_LAYERS = 2  # of an encoder's and a decoder's stack
MAX_LAYERS = 8
SCALE = 0.2  # of weights between 64 channels; larger logits than an initialized model's show more

#: Parts of the names of fields that count the same thing in every architecture.
WINDOWS = (
    "sliding_window", "window_size", "attention_chunk_size", "local_attention_window", "floor_scale", "index_topk",
)  # fmt: skip
EXPERT_COUNTS = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts", "zero_expert_num",
)  # fmt: skip
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_k")
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
VOCABULARIES = ("vocab_size", "decoder_vocab_size", "n_words")
STACK_COUNTS = ("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers")
EXPERT_GROUPS = ("n_group", "n_groups_experts", "num_expert_group")

#: Lists of the layers of one kind, by their indices.
LAYER_INDICES = ("attn_layer_indices",)
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id")


Cut = Callable[[dict[str, Any]], None]


def twins(config: Any, device: torch.device) -> Iterator[Callable[[], Any]]:
    """Makers of the twin of a configuration's language model, in fp32: the smallest first, then less and less cut.

    A maker raises what Transformers raises where the cuts do not suit an architecture.
    """
    for cuts in CUTS:
        yield partial(_made, config, cuts, device)


def _made(config: Any, cuts: Iterable[Cut], device: torch.device) -> Any:
    return built(small_config(config, cuts), device)


def built(config: Any, device: torch.device) -> Any:
    """A random model, the same one at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto_class(config).from_config(config, dtype=torch.float32)
    model = model.to(device).eval().requires_grad_(False)
    _draw_weights(model)
    return model


def small_config(config: Any, cuts: Iterable[Cut]) -> Any:
    """The text part alone, or all of it where Transformers has no class for the text alone."""
    text = config.get_text_config()
    whole = text if is_causal(text) else config
    fields = copy.deepcopy(whole.to_dict())
    for name in ("quantization_config", "dtype", "torch_dtype", "_attn_implementation", "transformers_version"):
        fields.pop(name, None)
    for part in (fields, *(value for name, value in fields.items() if name.endswith("_config"))):
        if isinstance(part, dict):
            for cut in cuts:
                cut(part)
    return type(whole).from_dict(fields)


def cut_vocabulary(fields: dict[str, Any]) -> None:
    for name in fields:
        if name.startswith(VOCABULARIES) and isinstance(fields[name], int):
            fields[name] = VOCAB
    for index, name in enumerate(TOKEN_IDS):
        if name in fields:
            fields[name] = index if fields[name] is not None else None


def cut_layers(fields: dict[str, Any], most: int = LAYERS) -> None:
    """Keeps the first layer of each kind and at least two; `most` where the layers' kinds are not listed."""
    for name in STACK_COUNTS:
        if isinstance(fields.get(name), int):
            fields[name] = min(fields[name], STACK_LAYERS)
    count_name = next((name for name in LAYER_COUNTS if isinstance(fields.get(name), int)), None)
    if count_name is None:
        return
    if fields.pop("num_layers_per_stack", None):  # the count is that of all passes through a stack
        fields[count_name] = 1
        return
    count = fields[count_name]
    lists = {name: value for name, value in fields.items() if isinstance(value, list) and len(value) == count}
    indices = {name: set(fields[name]) for name in LAYER_INDICES if isinstance(fields.get(name), list)}
    if lists or indices:
        chosen = [[index in those for index in range(count)] for those in indices.values()]
        kept = _first_of_each_kind([tuple(map(str, kinds)) for kinds in zip(*lists.values(), *chosen, strict=True)])
        for name, value in lists.items():
            fields[name] = [value[index] for index in kept]
        for name, those in indices.items():
            fields[name] = [new for new, old in enumerate(kept) if old in those]
        fields[count_name] = len(kept)
        if isinstance(settings := fields.get("per_layer_config"), dict):
            given = {int(index): value for index, value in settings.items()}
            fields["per_layer_config"] = {new: given[old] for new, old in enumerate(kept) if old in given}
    else:
        fields[count_name] = min(count, most)
    for name in ("first_k_dense_replace", "num_dense_layers", "num_kv_shared_layers"):
        if isinstance(fields.get(name), int):
            fields[name] = min(fields[name], 1)


def _first_of_each_kind(kinds: list[tuple[str, ...]]) -> list[int]:
    first = sorted({kind: index for index, kind in reversed(list(enumerate(kinds)))}.values())[:MAX_LAYERS]
    others = [index for index in range(len(kinds)) if index not in first]
    return sorted(first + others[: max(0, 2 - len(first))])


def cut_widths(fields: dict[str, Any]) -> None:
    """Narrows what can be narrow without other fields knowing, at any depth."""
    groups = max(fields.get(name) or 1 for name in EXPERT_GROUPS)
    for name, value in fields.items():
        if isinstance(value, dict):
            cut_widths(value)
        elif not isinstance(name, str):  # of the labels of a classifier
            continue
        elif name.endswith(("intermediate_size", "ffn_hidden_size")) or name in ("ffn_dim", "n_inner", "d_ff"):
            fields[name] = _each(value, MLP_SIZE)
        elif name in EXPERT_COUNTS:
            fields[name] = _each(value, max(EXPERTS, 2 * groups))
        elif name in EXPERTS_PER_TOKEN:
            fields[name] = _each(value, EXPERTS // 2)
        elif name in WINDOWS:
            fields[name] = _each(value, WINDOW)


def cut_layers_less(fields: dict[str, Any]) -> None:
    """Keeps enough layers for a period of eight."""
    cut_layers(fields, 2 * LAYERS)


#: The cuts of each twin, the smallest first.
CUTS: tuple[tuple[Cut, ...], ...] = (
    (cut_vocabulary, cut_layers, cut_widths),
    (cut_vocabulary, cut_layers_less, cut_widths),
    (cut_vocabulary, cut_widths),
)


def _each(value: Any, most: int) -> Any:
    """A number, or each of a list of them, at most so large."""
    if isinstance(value, list):
        return [_each(each, most) for each in value]
    return min(value, most) if isinstance(value, int) and not isinstance(value, bool) else value


@torch.no_grad()
def _draw_weights(model: Any) -> None:
    """Weights large enough that a wrong one is seen in the logits; the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * SCALE * math.sqrt(64 / parameter.shape[-1]))
        elif name.endswith(("bias", "sinks")):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * SCALE)
        elif name.endswith("weight"):  # a norm's, which are all 1 or all 0 in a new model
            parameter.add_((torch.randn(parameter.shape, generator=generator) * SCALE).to(parameter.device))
