"""Sizes that a configuration leaves out are those of its class; weights of another size are refused before they load.

Nothing here builds a model: the class's source and the names and shapes of the weights tell.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from models.checkpoint.folder import check_folder
from models.checkpoint.safetensors_header import TensorInfo
from models.checkpoint.small_files import CheckpointProblem
from models.checkpoint.transformers_source.architectures import known_architectures
from models.checkpoint.transformers_source.config_defaults import class_of_text_part
from models.checkpoint.weight_shapes import check_shapes
from tests.support.model_folders import edit_json, make_small_model

Shapes = dict[str, tuple[int, ...]]

SIZES: dict[str, int] = {
    "vocab_size": 100, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip


def decoder(prefix: str = "model.", num_layers: int = 2, vocab: int = 100, hidden: int = 8, inner: int = 12) -> Shapes:
    layers: Shapes = {}
    for index in range(num_layers):
        layers |= {
            f"{prefix}layers.{index}.input_layernorm.weight": (hidden,),
            f"{prefix}layers.{index}.mlp.down_proj.weight": (hidden, inner),
        }
    return {f"{prefix}embed_tokens.weight": (vocab, hidden), **layers}


def with_experts(count: int, inner: int = 6, *, stacked: bool = False) -> Shapes:
    if stacked:
        return decoder() | {"model.layers.0.mlp.experts.down_proj": (count, inner, 8)}
    return decoder() | {f"model.layers.0.mlp.experts.{i}.down_proj.weight": (8, inner) for i in range(count)}


def gpt2(num_layers: int) -> Shapes:
    layers: Shapes = {f"transformer.h.{index}.ln_1.weight": (768,) for index in range(num_layers)}
    return {"transformer.wte.weight": (50257, 768), **layers}


def problem(config: dict[str, Any], shapes: Shapes) -> str | None:
    try:
        check_shapes(Path("model"), {name: TensorInfo("BF16", shape) for name, shape in shapes.items()}, config)
    except CheckpointProblem as refused:
        return str(refused)
    return None


def without(name: str, model_type: str = "qwen2", **values: Any) -> dict[str, Any]:
    return {"model_type": model_type, **{key: value for key, value in {**SIZES, **values}.items() if key != name}}


VISION: Shapes = {f"model.vision_tower.encoder.layers.{index}.norm.weight": (8,) for index in range(5)}

REFUSED: list[tuple[dict[str, Any], Shapes, str]] = [
    ({"model_type": "gemma3", "text_config": None}, decoder("model.language_model."), "vocab_size is absent"),
    ({"model_type": "gemma3", "text_config": {}}, decoder("model.language_model."), "Transformers takes 262,208"),
    ({"model_type": "gemma3"}, decoder("model.language_model."), "the embedding in the weights has 100 rows"),
    ({"model_type": "got_ocr2", "text_config": None}, decoder(vocab=151936), "Transformers takes 151,860"),
    (without("vocab_size"), decoder(), "vocab_size is absent, for which Transformers takes 151,936, but"),
    (without("", vocab_size=None), decoder(), "vocab_size is absent"),
    (without("hidden_size"), decoder(), "hidden_size is absent, for which Transformers takes 4,096, but no tensor"),
    (without("num_hidden_layers"), decoder(), "num_hidden_layers is absent, for which Transformers takes 32, but"),
    (without("intermediate_size"), decoder(), "intermediate_size is absent, for which Transformers takes 22,016"),
    (without("", "mixtral"), with_experts(4), "num_local_experts is absent, for which Transformers takes 8, but"),
    (
        without("", "qwen3_moe", moe_intermediate_size=6),
        with_experts(4, stacked=True),
        "Transformers takes 128, but the weights have 4 experts",
    ),
    (without("", "qwen3_moe", num_experts=4), with_experts(4), "moe_intermediate_size is absent"),
    ({"model_type": "gpt2"}, gpt2(24), "n_layer is absent, for which Transformers takes 12, but"),
    (without("", num_hidden_layers=3), decoder(), "num_hidden_layers is 3, but the weights have 2 layers"),
]

#: Names that do not tell which layers are the language model's.
TWO_GROUPS: Shapes = {
    "bert.embeddings.word_embeddings.weight": (100, 8),
    **{f"bert.encoder.layer.{index}.mlp.fc1.weight": (12, 8) for index in range(12)},
    **VISION,
}

TAKEN: list[tuple[dict[str, Any], Shapes]] = [
    (without("num_hidden_layers", "bert"), TWO_GROUPS),
    (without(""), decoder()),
    ({"model_type": "gpt2"}, gpt2(12)),
    ({"model_type": "gpt2", "n_layer": 24}, gpt2(24)),
    ({"model_type": "qwen3_5", "text_config": without("", "qwen3_5_text")}, decoder("model.language_model.") | VISION),
    # The same value by the name that the class has for it, and by that of others.
    (without("", "qwen3_moe", num_experts=4, moe_intermediate_size=6), with_experts(4)),
    (without("", "qwen3_moe", num_local_experts=4, moe_intermediate_size=6), with_experts(4, stacked=True)),
    # By an older name, which the class's own code takes.
    (without("hidden_size", "bloom", n_embed=8), decoder()),
    # Layers for further tokens behind those of the model, rows for tokens of the model's own.
    (without("num_hidden_layers", "deepseek_v3", n_routed_experts=1), decoder(num_layers=62)),
    (without("", "moshi"), decoder(vocab=101)),
    ({"model_type": "a-stranger"}, decoder()),
]


@pytest.mark.parametrize(("config", "shapes", "sentence"), REFUSED, ids=lambda case: str(case)[:60])
def test_a_default_that_the_weights_do_not_have(config: dict[str, Any], shapes: Shapes, sentence: str) -> None:
    found = problem(config, shapes)
    assert found is not None and found.startswith("model/config.json: ") and sentence in found
    assert found.endswith("config and weights are of different models, download both again")


@pytest.mark.parametrize(("config", "shapes"), TAKEN, ids=lambda case: str(case)[:60])
def test_a_default_that_they_have(config: dict[str, Any], shapes: Shapes) -> None:
    assert problem(config, shapes) is None


VALUES: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just([]) | st.just({"model_type": "llama"})
)
CONFIGS = st.dictionaries(st.sampled_from(["text_config", "num_local_experts", "n_layer", *SIZES]), VALUES)


@given(model_type=st.sampled_from(["qwen2", "gpt2", "gemma3", "mixtral", "", "../x", "mllama"]), config=CONFIGS)
def test_values_of_any_kind_are_one_line_at_most(model_type: str, config: dict[str, Any]) -> None:
    some: list[Shapes] = [decoder(), with_experts(3), {"x": ()}, gpt2(1)]
    for shapes in some:
        assert "\n" not in (problem({"model_type": model_type, **config}, shapes) or "")


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
def test_a_folder_without_one_of_its_sizes(name: str, tmp_path: Path) -> None:
    folder = make_small_model(tmp_path / "model")
    check_folder(folder)
    edit_json(folder / "config.json", **{name: ...})
    with pytest.raises(CheckpointProblem, match=f"{name} is absent, for which Transformers takes"):
        check_folder(folder)


SOME_TYPES = ("qwen2", "gpt2", "gemma3", "qwen3_5", "llava", "got_ocr2", "bloom", "opt", "jamba", "gpt_oss")
NAMES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")


@pytest.mark.parametrize("model_type", SOME_TYPES)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    check_defaults(model_type)


@pytest.mark.long
def test_defaults_of_every_type() -> None:
    for model_type in sorted({*known_architectures().causal, *known_architectures().conditional}):
        check_defaults(model_type)


def check_defaults(model_type: str) -> None:
    """Nothing is said of a value that Transformers does not take; most are known."""
    try:
        config = AutoConfig.for_model(model_type).get_text_config()
    except Exception:
        return  # Transformers has no default of it
    of_class = class_of_text_part({"model_type": model_type})
    found = {name: of_class.default({}, name) for name in NAMES}
    for name, default in found.items():
        assert default is None or default.value == getattr(config, name), (model_type, name)
    assert model_type not in SOME_TYPES or found["vocab_size"] is not None
