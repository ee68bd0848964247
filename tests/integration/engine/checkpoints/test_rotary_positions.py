"""Rotary positions that change with a sequence's length: as `generate` has them, packed where they cannot change."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from models.checkpoint.config import packing_problem
from models.params import GenerationParams
from models.states import Strategy
from tests.support.model_folders import SMALL_FILES, TOY_MODEL
from tests.support.random_models import generate
from worker.engine.engine import Engine
from worker.engine.request import Request

FIRST, WINDOW = 96, 256  # tokens that the model was first trained with, and that it takes
_SHAPE: dict[str, Any] = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": WINDOW, "bos_token_id": 0, "eos_token_id": 2,
    "pad_token_id": 1,
}  # fmt: skip
TYPES: dict[str, dict[str, Any]] = {
    "phi3": {
        "original_max_position_embeddings": FIRST,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [6.0] * 8,
            "original_max_position_embeddings": FIRST,
        },
    },
    "llama": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}},
}  # fmt: skip


def folder_of(model_type: str, folder: Path) -> Any:
    """Saves a random model; returns it."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **_SHAPE, **TYPES[model_type]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    model.save_pretrained(folder)
    for name in SMALL_FILES:
        shutil.copy(TOY_MODEL / name, folder)
    return model.eval()


@pytest.mark.parametrize(
    ("model_type", "max_model_len", "path", "lengths"),
    [
        ("phi3", None, "fallback", (5, FIRST - 4, FIRST, FIRST + 1, 150)),  # the second grows beyond it
        ("phi3", FIRST, "packed", (1, 5, FIRST - 10)),
        ("llama", None, "packed", (5, FIRST, 150, WINDOW - 10)),
    ],
)
def test_answers_are_those_of_generate(
    model_type: str, max_model_len: int | None, path: str, lengths: tuple[int, ...], tmp_path: Path
) -> None:
    reference = folder_of(model_type, tmp_path)
    engine = Engine.load(str(tmp_path), dtype="float32", device="cpu", kv_memory=0.05, max_model_len=max_model_len)
    verdict = engine.loaded.verdict
    assert verdict is not None and verdict.path == path, verdict
    params = GenerationParams(max_new_tokens=10, eos_token_ids=(2,))
    prompts = [tuple(range(7, 7 + length)) for length in lengths]
    outputs = engine.generate([Request(index, prompt, params) for index, prompt in enumerate(prompts)])
    found = {output.request_id: list(output.completions[0].token_ids) for output in outputs}
    for index, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        answer = reference.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10, eos_token_id=2, pad_token_id=1
        )
        assert found[index] == answer[0, len(prompt) :].tolist(), len(prompt)


def test_beams_and_samples_that_grow_beyond_the_first_length(tmp_path: Path) -> None:
    reference = folder_of("phi3", tmp_path)
    engine = Engine.load(str(tmp_path), dtype="float32", device="cpu", kv_memory=0.05)
    prompts = [tuple(range(7, 7 + length)) for length in (FIRST - 4, FIRST - 1, FIRST)]
    beams = GenerationParams(strategy=Strategy.BEAM, num_beams=3, max_new_tokens=8, eos_token_ids=(2,))
    samples = GenerationParams(strategy=Strategy.SAMPLE, n=2, seed=3, max_new_tokens=8, eos_token_ids=(2,))
    requests = [Request(number, prompt, beams) for number, prompt in enumerate(prompts)]
    requests += [Request(10 + number, prompt, samples) for number, prompt in enumerate(prompts)]
    found = {output.request_id: output.completions for output in engine.generate(requests)}
    for number, prompt in enumerate(prompts):
        ((expected, _),) = generate(reference, prompt, beams)
        assert list(found[number][0].token_ids) == expected
        (alone,) = engine.generate([Request(20, prompt, samples)])
        assert alone.completions == found[10 + number]


def test_a_longer_sequence_is_refused_where_rows_are_packed(tmp_path: Path) -> None:
    folder_of("phi3", tmp_path)
    engine = Engine.load(str(tmp_path), dtype="float32", device="cpu", kv_memory=0.05, max_model_len=FIRST)
    assert engine.loaded.limits.context_window == FIRST
    (output,) = engine.generate([Request(0, tuple(range(7, 7 + FIRST)), GenerationParams(max_new_tokens=10))])
    assert output.error is not None and str(FIRST) in str(output.error)


LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("config", "max_model_len", "is_packed"),
    [
        ({"rope_parameters": LONGROPE, "max_position_embeddings": 131072}, None, False),
        ({"rope_parameters": LONGROPE, "max_position_embeddings": 131072}, 4097, False),
        ({"rope_parameters": LONGROPE, "max_position_embeddings": 131072}, 4096, True),
        ({"rope_parameters": LONGROPE, "max_position_embeddings": 4096}, None, True),
        ({"rope_parameters": LONGROPE}, None, False),
        ({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 4096}, 4096, True),
        ({"rope_scaling": {"type": "longrope"}, "max_position_embeddings": 4096}, 1024, False),
        ({"rope_scaling": LONGROPE, "max_position_embeddings": [8192]}, None, False),
        ({"rope_parameters": {"full_attention": LONGROPE}, "max_position_embeddings": 131072}, None, False),
        ({"rope_parameters": {"rope_type": "dynamic"}, "max_position_embeddings": 131072}, None, True),
        ({"rope_scaling": None}, None, True),
    ],
)
def test_what_a_configuration_says(config: dict[str, Any], max_model_len: int | None, is_packed: bool) -> None:
    problem = packing_problem(config, max_model_len)
    assert (problem is None) == is_packed
    if problem and "original_max_position_embeddings" in str(config):
        assert "--max-model-len 4096" in problem
