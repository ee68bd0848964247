"""A LoRA adapter is merged as W + scale B A, is in the provenance, and is refused by name where it does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.model_matrix.tiny import tiny_model
from models.checkpoint.small_files import CheckpointProblem
from models.params import GenerationParams
from tests.support.model_folders import edit_json, make_small_model
from worker.engine.engine import Engine
from worker.engine.loading.adapter import merge_adapter
from worker.engine.provenance import describe_environment
from worker.engine.request import ModelUnavailable, Request

RANK = 4
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.v_proj")


def make_adapter(
    folder: Path, weights: dict[str, Tensor], modules: Sequence[str] = MODULES, **config: Any
) -> dict[str, Tensor]:
    """An adapter of random matrices; returns the changes that it means, without their scale."""
    torch.manual_seed(2)
    folder.mkdir()
    tensors: dict[str, Tensor] = {}
    changes: dict[str, Tensor] = {}
    for module in modules:
        rows, columns = weights[f"{module}.weight"].shape
        a, b = torch.randn(RANK, columns), torch.randn(rows, RANK)
        tensors |= {f"base_model.model.{module}.lora_{name}.weight": each for name, each in (("A", a), ("B", b))}
        changes[f"{module}.weight"] = b @ a
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 2, "bias": "none"}')
    edit_json(folder / "adapter_config.json", **config)
    return changes


def answer(model: Path, adapter: Path | None = None) -> tuple[tuple[int, ...], dict[str, Any]]:
    engine = Engine.load(
        str(model), dtype="float32", device="cpu", kv_memory=0.05, adapter=None if adapter is None else str(adapter)
    )
    (output,) = engine.generate([Request(0, (5, 6, 7), GenerationParams(max_new_tokens=12, eos_token_ids=(2,)))])
    return output.completions[0].token_ids, describe_environment(engine.loaded)["versions"]


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({}, (0.5, 0.5, 0.5)),
        ({"use_rslora": True, "fan_in_fan_out": True}, (1.0, 1.0, 1.0)),
        ({"alpha_pattern": {"mlp.down_proj": 8}}, (0.5, 2.0, 0.5)),
        ({"rank_pattern": {r"^model\.layers\.(0|1)\..*": 4}}, (0.5, 0.5, 0.5)),
        ({"alpha_pattern": {"down_proj": 8, "layers.1.mlp.down_proj": 16, "proj": 4}}, (0.5, 2.0, 0.5)),  # the first
    ],
    ids=str,
)
def test_an_adapter_is_merged(config: dict[str, Any], scales: tuple[float, ...], tmp_path: Path) -> None:
    model, merged = make_small_model(tmp_path / "model"), make_small_model(tmp_path / "merged")
    weights = load_file(model / "model.safetensors")
    changes = make_adapter(tmp_path / "adapter", weights, **config)
    for module, scale in zip(MODULES, scales, strict=True):
        weights[f"{module}.weight"] = weights[f"{module}.weight"] + scale * changes[f"{module}.weight"]
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    found, versions = answer(model, tmp_path / "adapter")
    expected, plain_versions = answer(merged)
    assert found == expected != answer(model)[0]
    assert "adapter" not in plain_versions and len(versions["adapter"]) == 32
    assert versions["adapter_name"] == "adapter" and plain_versions["is_batch_invariant"]


def test_an_embedding_that_is_saved_beside_its_matrices_is_the_models_own(tmp_path: Path) -> None:
    """PEFT writes it where an adapter changes an embedding or a head."""
    model = make_small_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    make_adapter(tmp_path / "adapter", weights)
    expected, _ = answer(model, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    name = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    tensors = load_file(path) | {name: weights["model.layers.0.self_attn.q_proj.weight"]}
    save_file(tensors, path, metadata={"format": "pt"})
    assert answer(model, tmp_path / "adapter")[0] == expected


@pytest.mark.parametrize(
    ("model_type", "experts", "parts"),
    [
        ("qwen3_moe", "mlp.experts", ("gate_proj", "up_proj", "down_proj")),
        ("mixtral", "block_sparse_moe.experts", ("w1", "w3", "w2")),
    ],
)
def test_each_expert_may_have_an_adapter(
    model_type: str, experts: str, parts: tuple[str, str, str], tmp_path: Path
) -> None:
    """Under the names of Transformers 4, where an expert had layers of its own."""
    model = tiny_model(model_type)
    before = {name: each.clone() for name, each in model.named_parameters()}
    (all_experts,) = [name for name, module in model.named_modules() if name.endswith("layers.0.mlp.experts")]
    gate_up, down = before[f"{all_experts}.gate_up_proj"], before[f"{all_experts}.down_proj"]
    half = gate_up.shape[1] // 2
    weights = {part: torch.empty(half, gate_up.shape[2]) for part in parts[:2]} | {parts[2]: down[0]}
    changes = make_adapter(
        tmp_path / "adapter",
        {f"model.layers.0.{experts}.2.{part}.weight": weight for part, weight in weights.items()},
        modules=[f"model.layers.0.{experts}.2.{part}" for part in parts],
    )
    merge_adapter(model, tmp_path / "adapter")
    gate, up, out = (0.5 * change for change in changes.values())
    gate_up[2] += torch.cat([gate, up])
    down[2] += out
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=1e-6)


DAMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "use_dora is not merged here"),
    "kind": ({"peft_type": "IA3"}, "peft_type is IA3; only LORA"),
    "bias": ({"bias": "all"}, "its biases are trained too"),
    "pattern": ({"alpha_pattern": {"(a+)+": 1}}, "alpha_pattern has more than names"),
    "alpha": ({"lora_alpha": "16"}, "lora_alpha must be a number"),
    "alpha of one": ({"alpha_pattern": {"q_proj": "eight"}}, "alpha_pattern must have numbers, got 'eight'"),
    "rank of one": ({"rank_pattern": {"q_proj": None}}, "rank_pattern must have numbers, got 'None'"),
    "activated": ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens is not merged here"),
    "replicated": ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication is not merged here"),
    "begun": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is pissa_niter_4, which changes the model"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_adapter_of_another_kind_is_refused(damage: str, tmp_path: Path) -> None:
    from models.checkpoint.adapter import check_adapter

    config, message = DAMAGES[damage]
    make_adapter(tmp_path / "adapter", load_file(make_small_model(tmp_path / "model") / "model.safetensors"), **config)
    with pytest.raises(CheckpointProblem, match=message):
        check_adapter(tmp_path / "adapter")


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("q_proj", "x_proj"): tensor for name, tensor in tensors.items()}


def cut(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[:, :3].contiguous() if name.endswith("q_proj.lora_A.weight") else tensor
            for name, tensor in tensors.items()}  # fmt: skip


def vision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("model.layers", "model.visual.blocks"): tensor for name, tensor in tensors.items()}


def alone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("q_proj.lora_B.weight")}


def tied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("model.layers.0.self_attn.q_proj", "lm_head"): tensor for name, tensor in tensors.items()}


def whole_tied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "base_model.model.model.embed_tokens.weight": torch.ones(1024, 16)}


def without_rank(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: (each[:0] if "lora_A" in name else each[:, :0]).contiguous() for name, each in tensors.items()}


def not_finite(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: each * float("nan") for name, each in tensors.items()}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (whole_tied, "embed_tokens, whose weight another layer of the model shares"),
        (without_rank, "the two matrices of .* do not fit"),
        (not_finite, "values that are not finite"),
        (renamed, "x_proj, which the model does not have in that shape"),
        (cut, "q_proj, which the model does not have in that shape"),
        (vision, "changes nothing that text passes through"),
        (alone, "lacks one of the two matrices of model.layers.0.self_attn.q_proj"),
        (tied, "lm_head, whose weight another layer of the model shares"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    damage: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, tmp_path: Path
) -> None:
    model = make_small_model(tmp_path / "model")
    make_adapter(tmp_path / "adapter", load_file(model / "model.safetensors"))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(damage(load_file(path)), path, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=message):
        answer(model, tmp_path / "adapter")
