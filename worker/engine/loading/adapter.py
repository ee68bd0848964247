"""Merges a LoRA adapter into a loaded model: W + scale * B A, computed in fp32 and rounded once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoint.adapter import WEIGHTS, check_adapter, scale_of
from worker.engine.request import ModelUnavailable

PREFIX = "base_model.model."

#: Beginnings of names in models that also see images, and those of the same module in the text part, or in another
#: version of Transformers.
OTHER_NAMES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.model.", "model.language_model."),
    ("model.", "model.language_model."),
    ("language_model.lm_head", "lm_head"),
)

#: The layer of one expert, as it was named before experts had one tensor for all.
EXPERT = re.compile(r"(?P<experts>.*\.experts)\.(?P<number>\d+)\.(?P<part>gate_proj|up_proj|down_proj|w[123])")

#: Beginnings of names of what no text passes through.
NO_TEXT = ("visual.", "vision_tower.", "vision_model.", "multi_modal_projector.")
LOW_RANK = {".lora_A.weight": "A", ".lora_B.weight": "B", ".lora_embedding_A": "A", ".lora_embedding_B": "B"}


@torch.no_grad()
def merge_adapter(model: Any, folder: Path) -> None:
    """Changes the model's weights. Raises `ModelUnavailable` for a tensor that has no place in the model."""
    config = check_adapter(folder)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    pairs, whole = _parts(load_file(folder / WEIGHTS), parameters)
    if not pairs and not whole:
        raise ModelUnavailable(f"the adapter {folder} changes nothing that text passes through; decode without it")
    for given_name, pair in sorted(pairs.items()):
        module = _own_name(f"{given_name}.weight", parameters).removesuffix(".weight")
        expert = _expert_weight(model, module)
        weight = _weight(folder, module, parameters) if expert is None else expert
        if set(pair) != {"A", "B"} or pair["A"].dim() != 2 or pair["B"].dim() != 2:
            raise ModelUnavailable(f"the adapter {folder} lacks one of the two matrices of {module}; save it again")
        a, b = pair["A"].float(), pair["B"].float()
        if b.shape[1] != a.shape[0] or not a.shape[0]:
            raise ModelUnavailable(f"the adapter {folder}: the two matrices of {module} do not fit; save it again")
        change = (b @ a) * scale_of(given_name, a.shape[0], config)
        if not change.isfinite().all():
            raise ModelUnavailable(f"the adapter {folder}: {module} has values that are not finite; save it again")
        change = change.T if expert is None and _is_transposed(model, module) else change
        if change.shape != weight.shape:
            raise _other_model(folder, module)
        weight.copy_(weight.float() + change.to(weight.device))
    for name, tensor in whole.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise _other_model(folder, name)
        if name.endswith(".weight"):
            _weight(folder, name.removesuffix(".weight"), parameters)
        parameters[name].copy_(tensor)


def _parts(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The two matrices of each module by the adapter's name, and tensors that were trained whole by the model's."""
    pairs: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix(PREFIX).replace(".default", "").replace(".modules_to_save", "")
        end = next((end for end in LOW_RANK if plain.endswith(end)), None)
        if plain.removeprefix("model.").startswith(NO_TEXT):
            continue
        if end is not None:
            pairs.setdefault(plain.removesuffix(end), {})[LOW_RANK[end]] = tensor
        elif not _is_base(plain, tensor, parameters):
            whole[_own_name(plain, parameters)] = tensor
    return pairs, whole


def _is_base(name: str, tensor: Tensor, parameters: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is the model's own embedding or head, which PEFT saves beside its two matrices."""
    base = parameters.get(_own_name(name.replace(".base_layer.", "."), parameters))
    return ".base_layer." in name and base is not None and base.shape == tensor.shape


def _own_name(name: str, parameters: Mapping[str, Tensor]) -> str:
    """The model's name of a parameter that an adapter names."""
    return next((each for each in _names(name) if each in parameters), name)


def _names(name: str) -> list[str]:
    """A name, and those that the same may have in the model."""
    return [name, *(own + name.removeprefix(theirs) for theirs, own in OTHER_NAMES if name.startswith(theirs))]


def _weight(folder: Path, module: str, parameters: Mapping[str, Tensor]) -> Tensor:
    """The weight of a module, which no other module has too."""
    weight = parameters.get(f"{module}.weight")
    if weight is None:
        raise _other_model(folder, module)
    if sum(other is weight for other in parameters.values()) > 1:
        raise ModelUnavailable(
            f"the adapter {folder} changes {module}, whose weight another layer of the model shares; merge it with "
            "PEFT (merge_and_unload)"
        )
    return weight


def _expert_weight(model: Any, module: str) -> Tensor | None:
    """The part of all experts' weights that one expert's layer had in Transformers 4; None for other modules."""
    if (found := EXPERT.fullmatch(module)) is None:
        return None
    names = _names(found["experts"].replace(".block_sparse_moe.", ".mlp."))
    experts: Any = next((each for each in (_module(model, name) for name in names) if each is not None), None)
    number, part = int(found["number"]), found["part"]
    is_known = getattr(experts, "is_transposed", True) is False and getattr(experts, "is_concatenated", False)
    if not is_known or number >= len(experts.down_proj):
        return None
    if part in ("down_proj", "w2"):
        down: Tensor = experts.down_proj[number]
        return down
    gate_and_up: tuple[Tensor, Tensor] = experts.gate_up_proj[number].chunk(2)
    return gate_and_up[part in ("up_proj", "w3")]


def _module(model: Any, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _is_transposed(model: Any, module: str) -> bool:
    """Whether the module keeps its weight as [in, out], as embeddings and GPT-2's layers do.

    As in PEFT, the module decides, whatever the adapter's configuration says (`fan_in_fan_out`).
    """
    kind = type(model.get_submodule(module)).__name__
    return isinstance(model.get_submodule(module), torch.nn.Embedding) or kind == "Conv1D"


def _other_model(folder: Path, module: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"the adapter {folder} changes {module}, which the model does not have in that shape; it is of another model"
    )
