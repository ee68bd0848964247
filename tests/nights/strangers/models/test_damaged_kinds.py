"""Folders with experts, recurrent layers, quantized weights, a part that sees, and adapters, damaged at random.

Each is refused in one line or loaded, by producer and engine alike; never a traceback.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from models.checkpoint.adapter import check_adapter
from models.checkpoint.small_files import CheckpointProblem
from tests.field.models.test_fuzzed_folders import DAMAGES, damage, delete, edit_tensors, examine, flip, swap, truncate
from tests.integration.engine.checkpoints.test_adapters import make_adapter
from tests.integration.engine.checkpoints.test_quantized_weights import quantized_folder
from tests.support.model_folders import SMALL_FILES, TOY_MODEL, edit_json, make_small_model
from worker.engine.model_loader import load_model
from worker.engine.request import ModelUnavailable

SHORT, ALL = 4, 40  # folders of each kind in `make test` and in `make attack`
_SHAPE: dict[str, Any] = {
    "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 2,
    "pad_token_id": 1,
}  # fmt: skip
_HYBRID: dict[str, Any] = {
    **_SHAPE, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2, "out_hidden_size": 32, "patch_size": 14,
}  # fmt: skip


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    for name in SMALL_FILES:
        shutil.copy(TOY_MODEL / name, folder)
    return folder


def experts(folder: Path) -> Path:
    config = AutoConfig.for_model("mixtral", **_SHAPE, num_local_experts=4, num_experts_per_tok=2)
    return saved(AutoModelForCausalLM.from_config(config), folder)


def hybrid_that_sees(folder: Path) -> Path:
    config = AutoConfig.for_model("qwen3_5", text_config=_HYBRID, vision_config=_VISION)
    return saved(AutoModelForImageTextToText.from_config(config), folder)


def quantized(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        quantized_folder(folder, name)
        return folder

    return make


KINDS: dict[str, Callable[[Path], Path]] = {
    "experts": experts,
    "hybrid that sees": hybrid_that_sees,
    **{name: quantized(name) for name in ("gptq", "nf4", "fp8")},
}


@pytest.mark.parametrize("number", [SHORT, pytest.param(ALL, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_folder_of_any_kind_is_one_line(kind: str, number: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = KINDS[kind](tmp_path / "whole")
    assert examine(whole).startswith("loaded: ")
    for seed in range(number):
        folder = tmp_path / str(seed)
        done = damage(seed, whole, folder)
        try:
            outcome = examine(folder)
        except Exception as error:
            raise AssertionError(f"{kind}, seed {seed}: {done}") from error
        assert outcome.startswith(("loaded: ", "refused: ")), outcome
        shutil.rmtree(folder)


def edit_adapter(rng: random.Random, folder: Path) -> str:
    name = rng.choice(["peft_type", "lora_alpha", "r", "alpha_pattern", "bias", "fan_in_fan_out", "use_rslora"])
    value: Any = rng.choice([None, True, 0, -1, 1e300, "x", [], {"a": None}, {"q_proj": "x"}, {"(a+)+$": 2}, ...])
    edit_json(folder / "adapter_config.json", **{name: value})
    return f"{name}={value!r}"


def edit_matrices(rng: random.Random, folder: Path) -> str:
    (folder / "adapter_model.safetensors").rename(folder / "model.safetensors")
    done = edit_tensors(rng, folder)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    return done


@pytest.mark.parametrize("number", [4 * SHORT, pytest.param(ALL, marks=pytest.mark.long)])
def test_a_damaged_adapter_is_one_line(number: int, tmp_path: Path) -> None:
    model = make_small_model(tmp_path / "model")
    make_adapter(tmp_path / "whole", load_file(model / "model.safetensors"))
    damages = (truncate, flip, swap, delete, edit_adapter, edit_adapter, edit_matrices)
    assert set(damages) & set(DAMAGES)
    outcomes = set()
    for seed in range(number):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / str(seed)))
        rng = random.Random(seed)
        done = rng.choice(damages)(rng, folder)
        try:
            outcomes.add(examined_adapter(model, folder))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {done}") from error
    assert outcomes == {True, False}


def examined_adapter(model: Path, adapter: Path) -> bool:
    """Whether it is merged; whoever refuses it says one line."""
    try:
        check_adapter(adapter)
        load_model(str(model), "cpu", "float32", adapter=str(adapter))
    except (CheckpointProblem, ModelUnavailable) as refused:
        assert "\n" not in str(refused) and len(str(refused)) < 2000
        return False
    return True
