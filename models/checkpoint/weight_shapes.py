"""Compares the sizes in a configuration with those of its weights, by the names and shapes of the tensors.

A size that is left out has the default of its class, which is mostly that of a full-size model: where the weights are
of another size, Transformers would build the full one before it finds out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from models.checkpoint.config import text_part
from models.checkpoint.safetensors_header import TensorInfo
from models.checkpoint.small_files import CheckpointProblem
from models.checkpoint.transformers_source.config_defaults import Default, class_of_text_part
from models.checkpoint.transformers_source.looked_up_names import source_of

EMBEDDINGS = re.compile(r"(?P<group>^|^.*\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$")
LAYER = re.compile(r"^(?P<group>|.*?\.)(?:layers|layer|h|blocks)\.(?P<index>\d+)\.")
EXPERT = re.compile(r"\.experts\.(?P<index>\d+)\.")
STACKED_EXPERTS = re.compile(r"\.experts\.\w+$")

#: Tensors that have a size as one of their dimensions, or twice as much where two of them are one tensor.
PLACES = {
    "hidden_size": re.compile(""),
    "intermediate_size": re.compile(
        r"\.(mlp|feed_forward|ffn)\.(gate_proj|up_proj|down_proj|gate_up_proj|c_fc|fc1)\.weight$"
    ),
    "moe_intermediate_size": re.compile(r"\.experts\."),
}
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

FULL_PRECISIONS = ("F64", "F32", "F16", "BF16")

#: Fields for layers that only predict further tokens, which some weights have behind the others.
EXTRA_LAYERS = re.compile(r"nextn|mtp")


def check_shapes(folder: Path, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> None:
    """Raises `CheckpointProblem` for weights of another size than the configuration's."""
    if not any(tensor.shape for tensor in tensors.values()):
        raise CheckpointProblem(f"{folder}: the weights hold no tensor; download them again")
    sizes = _Sizes(config)
    for problem in (
        _vocab_problem(tensors, sizes),
        _layers_problem(tensors, sizes),
        *(_dimension_problem(name, tensors, sizes) for name in PLACES),
        _experts_problem(tensors, sizes),
    ):
        if problem is not None:
            raise CheckpointProblem(
                f"{folder / 'config.json'}: {problem}; config and weights are of different models, download both again"
            )


class _Sizes:
    """The sizes of a configuration's language model, those that it leaves out included."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._given = text_part(config)
        self._class = class_of_text_part(config)

    def given(self, *names: str) -> int | None:
        return next((value for name in names if isinstance(value := self._given.get(name), int)), None)

    def default(self, name: str) -> Default | None:
        """The value that the class adds where the configuration leaves one out."""
        return self._class.default(self._given, name)

    def is_computed(self, name: str) -> bool:
        """Whether the class makes another value of what the configuration says."""
        return name in self._class.computed

    @property
    def adds_rows(self) -> bool:
        """Whether the model's embedding has rows beyond its vocabulary."""
        model_type = str(self._given.get("model_type"))
        return re.search(r"Embedding\(config\.vocab_size \+", source_of(model_type, "modeling")) is not None

    @property
    def num_extra_layers(self) -> int:
        named = {**self._class.defaults, **self._given}
        return sum(value for name, value in named.items() if EXTRA_LAYERS.search(name) and type(value) is int)


def _absent(default: Default) -> str:
    return f"{default.name} is absent, for which Transformers takes {default.value:,}"


def _vocab_problem(tensors: Mapping[str, TensorInfo], sizes: _Sizes) -> str | None:
    rows = {tensor.shape[0] for name, tensor in tensors.items() if EMBEDDINGS.search(name) and tensor.shape}
    default = sizes.default("vocab_size")
    expected = default.value if default else sizes.given("vocab_size")
    if expected is None or len(rows) != 1 or rows == {expected} or (min(rows) > expected and sizes.adds_rows):
        return None
    about = _absent(default) if default else f"vocab_size is {expected:,}"
    return f"{about}, but the embedding in the weights has {rows.pop():,} rows"


def _layers_problem(tensors: Mapping[str, TensorInfo], sizes: _Sizes) -> str | None:
    """The problem of fewer layers than the configuration says, or of another number than its class's default."""
    given, default = sizes.given("num_hidden_layers", "n_layer"), sizes.default("num_hidden_layers")
    counts = _num_layers(tensors)
    present = max(counts.values(), default=0)
    if sizes.is_computed("num_hidden_layers"):
        return None
    if default is None:
        is_lacking = given is not None and 0 < present < given
        return f"num_hidden_layers is {given:,}, but the weights have {present:,} layers" if is_lacking else None
    own = [counts[group] for group in _groups(tensors) if group in counts] or list(counts.values())
    if not own or any(default.value <= count <= default.value + sizes.num_extra_layers for count in own):
        return None
    return f"{_absent(default)}, but the weights have {max(own):,} layers"


def _dimension_problem(name: str, tensors: Mapping[str, TensorInfo], sizes: _Sizes) -> str | None:
    """The problem of a default that is no tensor's size. Quantized weights are left out: they have other shapes."""
    if (default := sizes.default(name)) is None:
        return None
    found = [t.shape for key, t in tensors.items() if PLACES[name].search(key) and t.dtype in FULL_PRECISIONS]
    if not any(found) or {default.value, 2 * default.value} & {size for shape in found for size in shape}:
        return None
    return f"{_absent(default)}, but no tensor of the weights has such a dimension"


def _experts_problem(tensors: Mapping[str, TensorInfo], sizes: _Sizes) -> str | None:
    numbered = [int(match["index"]) + 1 for name in tensors if (match := EXPERT.search(name))]
    stacked = [t.shape[0] for name, t in tensors.items() if STACKED_EXPERTS.search(name) and len(t.shape) == 3]
    present = max([*numbered, *stacked], default=0)
    default = next((each for name in EXPERT_COUNTS if (each := sizes.default(name)) is not None), None)
    if default is None or present in (0, default.value):
        return None
    return f"{_absent(default)}, but the weights have {present:,} experts in a layer"


def _groups(tensors: Iterable[str]) -> Iterator[str]:
    """The names before those of an embedding of tokens: beside it stand the layers of the language model."""
    return (match["group"] for name in tensors if (match := EMBEDDINGS.search(name)))


def _num_layers(tensors: Iterable[str]) -> dict[str, int]:
    """The layers of each group, such as the language model's and a vision tower's."""
    indices: dict[str, set[int]] = {}
    for name in tensors:
        if match := LAYER.match(name):
            indices.setdefault(match["group"], set()).add(int(match["index"]))
    return {group: len(found) for group, found in indices.items()}
