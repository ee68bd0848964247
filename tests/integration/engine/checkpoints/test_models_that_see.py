"""A folder of a model that also sees images decodes its text part: the tokens of the whole model's `generate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from models.params import GenerationParams
from tests.integration.engine.checkpoints.test_quantized_weights import quantize_folder
from tests.support.model_folders import SMALL_FILES, TOY_MODEL
from worker.engine.engine import Engine
from worker.engine.request import Request

TEXT: dict[str, Any] = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 2,
    "pad_token_id": 1,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "depth": 1, "num_attention_heads": 2,
    "num_heads": 2, "out_hidden_size": 64, "image_size": 28, "patch_size": 14, "fullatt_block_indexes": [0],
}  # fmt: skip
TYPES: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 4], "rope_theta": 10000.0}},
    "gemma3": {"sliding_window": 16},
    "gemma4": {
        "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 32,
        "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 1024,
        "num_kv_shared_layers": 0,
    },
    "qwen3_5": {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    },
    "mistral3": {},
}  # fmt: skip


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("is_quantized", [False, True], ids=["plain", "fp8"])
def test_the_text_part_decodes(model_type: str, is_quantized: bool, tmp_path: Path) -> None:
    folder, plain = tmp_path / "model", tmp_path / "plain"
    model = saved_model(model_type, folder)
    if is_quantized:
        shutil.copytree(folder, plain)
        save_file(quantize_folder(folder, "fp8"), plain / "model.safetensors", metadata={"format": "pt"})
        model = AutoModelForImageTextToText.from_pretrained(plain).eval()
    check_text_part(model, folder)


def test_a_configuration_with_its_text_parts_fields_among_its_own(tmp_path: Path) -> None:
    """As Qwen2.5-VL's is published."""
    model = saved_model("qwen2_5_vl", tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config.pop("text_config"), **config}))
    check_text_part(model, tmp_path)


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "model."])
def test_an_adapter_of_the_whole_model_changes_its_text_part(model_type: str, prefix: str, tmp_path: Path) -> None:
    """Under today's names, those of Transformers 4, and the text part's own; scales go by the adapter's names."""
    folder, adapter = tmp_path / "model", tmp_path / "adapter"
    model = saved_model(model_type, folder)
    tensors: dict[str, Tensor] = {}
    scales: dict[str, int] = {}
    for side, shape in (("A", (4, 32)), ("B", (96, 4))):  # no text passes through it
        tensors[f"base_model.model.model.visual.blocks.0.attn.qkv.lora_{side}.weight"] = torch.randn(shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("model.language_model.") and name.endswith(("down_proj.weight", "q_proj.weight")):
                a, b = torch.randn(4, parameter.shape[1]), torch.randn(parameter.shape[0], 4)
                alpha = 2 + len(scales)
                parameter.add_(b @ a, alpha=alpha / 4)
                module = name.removesuffix(".weight").replace("model.language_model.", prefix)
                scales[module] = alpha
                tensors[f"base_model.model.{module}.lora_A.weight"] = a
                tensors[f"base_model.model.{module}.lora_B.weight"] = b
    adapter.mkdir()
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 1, "bias": "none", "alpha_pattern": scales}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    check_text_part(model, folder, adapter=str(adapter))


def saved_model(model_type: str, folder: Path) -> Any:
    torch.manual_seed(0)
    extra = {"mm_tokens_per_image": 4} if model_type == "gemma3" else {}
    config = AutoConfig.for_model(
        model_type, text_config={**TEXT, **TYPES[model_type]}, vision_config=VISION, eos_token_id=2, **extra
    )
    model: Any = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if 1 < parameter.dim() < 3:  # not the convolutions
                parameter.mul_(6)
    model.save_pretrained(folder)
    for name in SMALL_FILES:
        shutil.copy(TOY_MODEL / name, folder)
    return model


def check_text_part(model: Any, folder: Path, **options: Any) -> None:
    engine = Engine.load(str(folder), dtype="float32", device="cpu", kv_memory=0.05, **options)
    prompts = [tuple(range(7, 7 + length)) for length in (3, 20, 90)]
    params = GenerationParams(max_new_tokens=10, eos_token_ids=(2,))
    outputs = engine.generate([Request(index, prompt, params) for index, prompt in enumerate(prompts)])
    found = {output.request_id: list(output.completions[0].token_ids) for output in outputs}
    for index, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10, eos_token_id=2, pad_token_id=1
        )
        assert found[index] == expected[0, len(prompt) :].tolist()
