"""The shipped toy model: what README says of it, and greedy decoding of its prompts against `generate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from models.params import GenerationParams
from models.states import FinishReason, Strategy
from tests.conftest import ROOT, TOY_MODEL
from worker.engine.engine import Engine
from worker.engine.request import Completion, Request

MAX_BYTES = 10 * 2**20


@pytest.fixture(scope="module")
def toy() -> Engine:
    return Engine.load(str(TOY_MODEL), dtype="float32", kv_memory=0.1, max_num_seqs=32)


def lines_of(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ROOT / "examples" / name).read_text().splitlines()]


def study(toy: Engine, **params: object) -> dict[str, Completion]:
    """Custom id -> answer, for the study's two prompts."""
    lines = lines_of("study.jsonl")
    given = GenerationParams.model_validate({"max_new_tokens": 400, **params})
    requests = [Request(index, toy.encode(line["prompt"]), given) for index, line in enumerate(lines)]
    return {lines[output.request_id]["custom_id"]: output.completions[0] for output in toy.generate(requests)}


def is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        return False


def test_it_is_small_and_in_the_one_format_that_is_loaded() -> None:
    assert sum(path.stat().st_size for path in TOY_MODEL.iterdir()) < MAX_BYTES
    assert (TOY_MODEL / "model.safetensors").is_file()
    assert json.loads((TOY_MODEL / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]


def test_greedy_tells_a_story_that_ends_and_json_that_parses(toy: Engine) -> None:
    answers = study(toy)
    assert all(done.finish_reason is FinishReason.EOS for done in answers.values())
    assert answers["hedgehog"].text.startswith("Once upon a time, there was a tiny hedgehog named Sonic")
    assert is_json_object(answers["transfer"].text)
    assert set(json.loads(answers["transfer"].text)) == {"contractor", "sum", "currency"}
    assert len(answers["hedgehog"].token_ids) != len(answers["transfer"].token_ids)


def test_a_temperature_of_ten_gives_garbage(toy: Engine) -> None:
    for done in study(toy, strategy=Strategy.SAMPLE, temperature=10.0, seed=1).values():
        assert not done.text.startswith("Once upon a time")
        assert not is_json_object(done.text)


@pytest.mark.parametrize("num_prompts", [70, pytest.param(200, marks=pytest.mark.long)])
def test_greedy_is_transformers_generate(toy: Engine, num_prompts: int) -> None:
    prompts = [line["prompt"] for line in lines_of("prompts.jsonl") if "prompt" in line][:num_prompts]
    assert len(prompts) == num_prompts
    params = GenerationParams(max_new_tokens=48)
    requests = [Request(index, toy.encode(prompt), params) for index, prompt in enumerate(prompts)]
    outputs = {output.request_id: output.completions[0] for output in toy.generate(requests)}
    reference = AutoModelForCausalLM.from_pretrained(TOY_MODEL, dtype=torch.float32).eval()
    for request in requests:
        with torch.inference_mode():
            row = reference.generate(
                torch.tensor([request.prompt_ids]),
                attention_mask=torch.ones(1, len(request.prompt_ids), dtype=torch.long),
                do_sample=False,
                max_new_tokens=params.max_new_tokens,
            )[0]
        expected = tuple(row[len(request.prompt_ids) :].tolist())
        assert outputs[request.id].token_ids == expected


def test_the_training_text_is_composed_the_same_for_the_same_seed(tmp_path: Path) -> None:
    import subprocess
    import sys

    output = tmp_path / "prompts.jsonl"
    script = ROOT / "examples" / "tiny" / "prompts.py"
    subprocess.run([sys.executable, script, "--output", output], check=True, capture_output=True)
    assert output.read_bytes() == (ROOT / "examples" / "prompts.jsonl").read_bytes()
