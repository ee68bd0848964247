"""The budgets of a GPU's decode step, counted at full size on tensors without values."""

from __future__ import annotations

import sys
from functools import cache

import pytest

from benchmarks.gpu_roofline import __main__ as gpu_roofline
from benchmarks.gpu_roofline.step import DecodeStep, count_step, sampler_bytes

STEPS = [(shape, running) for shape in ("qwen2-0.5b", "qwen3-8b") for running in (16, 256, 1024)]

#: Beside the keys of a small model the rows of so many sequences count: gate and up go through memory.
BUDGETS = {("qwen2-0.5b", 1024): 1.34}

counted = cache(count_step)


def step_of(shape: str, running: int) -> DecodeStep:
    return counted(shape, running)


@pytest.mark.parametrize(("shape", "running"), STEPS)
def test_a_step_moves_little_more_than_weights_and_keys(shape: str, running: int) -> None:
    step = step_of(shape, running)
    assert step.ratio <= BUDGETS.get((shape, running), 1.3)


@pytest.mark.parametrize(("shape", "running"), STEPS)
def test_a_layer_is_at_most_ten_launches(shape: str, running: int) -> None:
    step = step_of(shape, running)
    assert step.layer.kernels.total() <= 10
    outside = step.whole.kernels.total() - step.num_layers * step.layer.kernels.total()
    assert 0 < outside <= 20


def test_deterministic_layers_take_a_launch_more_for_each_matmul_of_few_rows() -> None:
    layer = count_step("qwen2-0.5b", 16, deterministic=True).layer
    assert layer.kernels["matmul"] <= 8 and layer.kernels.total() <= 14
    assert count_step("qwen2-0.5b", 1024, deterministic=True).layer.kernels.total() <= 13


@pytest.mark.parametrize(("name", "budget"), [("greedy", 1.1), ("sample with rank", 2.1), ("nucleus", 4.0)])
def test_a_sampler_reads_the_logits_few_times(name: str, budget: float) -> None:
    moved, logits = sampler_bytes(name, 256, 151_936)
    assert logits < moved <= budget * logits


def test_the_command_prints_each_step(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_roofline", "--models", "qwen2-0.5b", "--running", "16"])
    gpu_roofline.main()
    told = capsys.readouterr().out
    assert "qwen2-0.5b,   16 running, 600 keys: " in told and "kernels a layer" in told
    assert "sampler, nucleus" in told
