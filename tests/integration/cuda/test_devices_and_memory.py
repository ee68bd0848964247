"""Several devices, their memory, and its end: at the start it is the engine's own error, in a step a smaller batch."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import psutil
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from models.engine_options import default_sizes
from models.params import GenerationParams
from tests.support.pretend_cuda.engines import answers, device_with_kernels, engine_of, mixed_requests, model_on
from tests.support.pretend_cuda.kernels import ReferenceAttention
from tests.support.pretend_cuda.machine import Machine
from tests.support.random_models import random_pair
from worker import devices
from worker.engine.backend import DeviceModel
from worker.engine.cuda import backend, triton_attention
from worker.engine.cuda.layers.decoder import load_with_kernels
from worker.engine.device_selection import choose_device, choose_dtype
from worker.engine.engine import Engine
from worker.engine.loading.size_check import check_size, num_bytes
from worker.engine.model.attention import AttentionLayer
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.step_batch import PagedRows
from worker.engine.model_loader import load_model
from worker.engine.out_of_memory import first_line, is_out_of_memory
from worker.engine.request import CapacityExceeded, ModelUnavailable, OutOfMemory, Request

MIB = 2**20
#: A model's weights and a small cache fit, and little else.
GPTQ = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
SIZES = {"kv_memory": None, "max_num_seqs": 4, "prefill_tokens": 64}


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2-softcap"])
def test_a_model_on_two_devices_gives_the_same_tokens(architecture: str) -> None:
    requests = mixed_requests(10)
    expected = answers(engine_of(random_pair(architecture).loaded), requests)
    with device_with_kernels(num_devices=2):
        loaded = model_on("cuda:0", architecture, is_spread=True)
        assert {shape.device for shape in loaded.model.layers.values()} == {
            torch.device("cuda:0"), torch.device("cuda:1")
        }  # fmt: skip
        assert answers(engine_of(loaded), requests) == expected


def kv_tokens(machine: Machine, taken: list[int]) -> int:
    """The tokens of a cache for a model on two devices, of whose memory something else has taken a part."""
    loaded = model_on("cuda:0", "qwen2", is_spread=True)
    others = [torch.zeros(size, dtype=torch.uint8, device=f"cuda:{index}") for index, size in enumerate(taken)]
    engine = engine_of(loaded, **{**SIZES, "max_num_seqs": 32})
    assert all(used <= machine.memory for used in machine.allocated)
    del others
    return engine.kv_tokens


def test_the_fullest_device_decides_how_large_the_cache_of_a_spread_model_is() -> None:
    with device_with_kernels(num_devices=2, memory=2 * MIB) as machine:
        free = kv_tokens(machine, [0, 0])
        assert kv_tokens(machine, [0, MIB // 2]) < free
        assert kv_tokens(machine, [MIB // 2, 0]) < free


def test_memory_that_lacks_at_the_start_is_the_engines_own_error() -> None:
    with device_with_kernels(memory=2 * MIB):
        loaded = model_on("cuda:0", "qwen2")
        with pytest.raises(OutOfMemory, match="memory ran out for the KV cache of qwen2; lower --max-num-seqs"):
            engine_of(loaded, kv_memory=0.01)


def test_a_card_that_others_have_taken_is_refused_with_what_is_where() -> None:
    """A worker takes its share of the whole card, and less where others have some of it."""
    with device_with_kernels(memory=8 * MIB) as machine:
        loaded, sizes = model_on("cuda:0", "qwen2"), {**SIZES, "max_num_seqs": 32}
        alone = engine_of(loaded, **sizes).kv_tokens
        others = torch.zeros(2 * MIB, dtype=torch.uint8, device="cuda:0")
        assert 0 < engine_of(loaded, **sizes).kv_tokens < alone
        others = torch.zeros(machine.memory // 2, dtype=torch.uint8, device="cuda:0")
        with pytest.raises(CapacityExceeded, match=r"nothing of cuda:0 is left .*-utilization is 0\.5; end the other"):
            engine_of(loaded, **sizes, gpu_memory_utilization=0.5)
        del others


def test_a_window_of_millions_of_tokens_takes_no_more_than_the_cache_can_hold() -> None:
    """Block tables are as wide as the longest sequence that the memory holds, not as the model's window."""
    requests = mixed_requests(6)
    expected = answers(engine_of(random_pair("qwen2").loaded), requests)
    with device_with_kernels(memory=16 * MIB) as machine:
        loaded = model_on("cuda:0", "qwen2")
        wide = dataclasses.replace(loaded, limits=dataclasses.replace(loaded.limits, context_window=10_000_000))
        engine = engine_of(wide, **{**SIZES, "max_num_seqs": 12})
        assert machine.peak[0] <= 0.9 * machine.memory
        assert engine.kv_tokens > 10_000
        assert answers(engine, requests) == expected


@pytest.mark.parametrize(("quantization", "note"), [({}, ""), (GPTQ, r", for its weights \(gptq, 4 bits\) are .*")])
def test_a_model_that_no_device_holds_is_refused_before_it_is_read(
    quantization: dict[str, Any], note: str, toy_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its configuration's arithmetic, for quantized weights are multiplied out; tied ones are there once."""
    given = json.loads((Path(toy_model) / "config.json").read_text()) | quantization
    config, devices = AutoConfig.from_pretrained(toy_model), [torch.device("cuda:0")]
    needed = sum(
        each.nbytes for each in AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32).parameters()
    )
    assert num_bytes(config, torch.float32) == needed and num_bytes(config, torch.bfloat16) == needed // 2
    with device_with_kernels(memory=needed):
        check_size("toy", Path(toy_model), given, config, torch.float32, devices)
    with device_with_kernels(memory=needed - 1):
        check_size("toy", Path(toy_model), given, config, torch.bfloat16, devices)
        with pytest.raises(OutOfMemory, match=rf"'toy' takes 0.0 GB in float32{note}, and .* free on cuda:0; take"):
            check_size("toy", Path(toy_model), given, config, torch.float32, devices)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=needed - 1))
    with pytest.raises(OutOfMemory, match="and this machine has 0.0 GB; take a smaller model, or --dtype bfloat16"):
        load_model(toy_model, "cpu", "float32")


@pytest.mark.parametrize("options", [{}, {"fuse": False}], ids=str)
def test_a_model_is_loaded_in_little_more_memory_than_its_own(options: dict[str, Any]) -> None:
    """Layers are merged one by one, and a layer's own weights go before the next one's are merged."""
    peaks = []

    def watched(*arguments: Any) -> DeviceModel:
        torch.cuda.reset_peak_memory_stats()
        loaded = load_with_kernels(*arguments)
        peaks.append(torch.cuda.max_memory_allocated())
        return loaded

    with device_with_kernels() as machine, patch.object(backend, "load_with_kernels", watched):
        loaded = model_on("cuda:0", "deep", **options)
        assert peaks[0] <= 1.15 * machine.allocated[0]
        assert loaded.model.paged_attention is not None


def test_a_device_that_is_not_there_is_named() -> None:
    with device_with_kernels(num_devices=2):
        assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:0")
        assert choose_device("cuda:1") == torch.device("cuda:1")
        with pytest.raises(ModelUnavailable, match="cuda:2 was asked for, but this machine has 2"):
            choose_device("cuda:2")


@pytest.mark.parametrize(
    ("device", "cuda", "level"),
    [("auto", "13.0", logging.WARNING), ("auto", None, logging.INFO), ("cpu", "13.0", None)],
)
def test_the_cpu_is_taken_in_silence_only_where_it_was_asked_for(
    device: str, cuda: str | None, level: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert choose_device(device) == torch.device("cpu")
    assert [record.levelno for record in caplog.records] == ([] if level is None else [level])
    assert ("decoding on the CPU: torch" in caplog.text) == (level is not None)


@pytest.mark.parametrize(("capability", "dtype"), [((9, 0), torch.bfloat16), ((7, 5), torch.float16)])
def test_bf16_is_not_chosen_where_it_is_emulated(capability: tuple[int, int], dtype: torch.dtype) -> None:
    with device_with_kernels(capability=capability):
        assert choose_dtype("auto", torch.device("cuda:0")) is dtype


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_lack_of_memory_is_known_by_all_its_names(error: Exception) -> None:
    assert is_out_of_memory(error) and "\n" not in first_line(error) and first_line(error)
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_a_gpu_without_a_kernel_is_refused_unless_slowness_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = mixed_requests(4)
    expected = answers(engine_of(random_pair("qwen2").loaded), requests)
    with device_with_kernels(capability=(7, 5)):
        with pytest.raises(ModelUnavailable, match=r"no kernel on cuda:0: pretend is older .* --allow-slow does"):
            model_on("cuda:0", "qwen2")
        loaded = model_on("cuda:0", "qwen2", allow_slow=True)
        assert loaded.model.paged_attention is None
        assert answers(engine_of(loaded), requests) == expected

    class Uncompiled:
        def __init__(self, _: int) -> None:
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")

    with device_with_kernels():
        monkeypatch.setattr(triton_attention, "TritonAttention", Uncompiled)
        with pytest.raises(ModelUnavailable, match=r"Failed to find C compiler.*python3-dev"):
            model_on("cuda:0", "qwen2")


def test_tiles_of_deterministic_answers_go_through_one_backend() -> None:
    requests = mixed_requests(4)
    expected = answers(engine_of(random_pair("qwen2").loaded), requests)
    seen = set()
    with device_with_kernels(capability=(7, 5)):
        loaded = model_on("cuda:0", "qwen2", allow_slow=True, deterministic=True)
        exact = torch.nn.functional.scaled_dot_product_attention

        def noting(*arguments: Any, **options: Any) -> Tensor:
            names = ("flash", "mem_efficient", "math", "cudnn")
            seen.add(tuple(getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in names))
            return exact(*arguments, **options)

        with patch.object(torch.nn.functional, "scaled_dot_product_attention", noting):
            assert answers(engine_of(loaded), requests) == expected
        assert seen == {(False, True, True, False)} and torch.backends.cuda.flash_sdp_enabled()


def test_a_kernel_that_gives_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unwritten(ReferenceAttention):
        def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:
            output = super().__call__(layer, query, cache, rows)
            output[-1] = float("nan")
            return output

    with device_with_kernels():
        monkeypatch.setattr(triton_attention, "TritonAttention", Unwritten)
        with pytest.raises(ModelUnavailable, match="its results differ from torch's by nan"):
            model_on("cuda:0", "qwen2")


def test_the_sizes_of_an_engine_depend_on_its_device(toy_model: str) -> None:
    on_cpu = Engine.load(toy_model, device="cpu", kv_memory=0.01)
    assert (on_cpu.config.max_num_seqs, on_cpu.config.prefill_tokens) == (64, 2048)
    assert default_sizes("cuda:0") == default_sizes("cuda:0+cuda:1") == {"max_num_seqs": 256, "prefill_tokens": 8192}
    assert default_sizes("cpu") == {"max_num_seqs": 64, "prefill_tokens": 2048}


def test_a_shorter_window_is_the_models(toy_model: str) -> None:
    engine = Engine.load(toy_model, device="cpu", kv_memory=0.01, max_model_len=20)
    outputs = {
        output.request_id: output
        for output in engine.generate([
            Request(0, tuple(range(5, 25))), Request(1, tuple(range(5, 20)), GenerationParams(ignore_eos=True))
        ])
    }  # fmt: skip
    assert "the context window of" in str(outputs[0].error) and "is 20" in str(outputs[0].error)
    assert len(outputs[1].completions[0].token_ids) == 5


def test_gpus_are_found_where_proc_does_not_show_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()

    def at(path: str) -> Path:
        return tmp_path if path == "/dev" else tmp_path / "absent"

    monkeypatch.setattr(devices, "Path", at)
    assert devices.device_names("auto", {}) == ["cuda:0", "cuda:1"]


def test_a_models_layers_on_one_device_share_its_memory() -> None:
    from worker.engine.cuda.memory import least_memory

    here, there = torch.device("cuda:0"), torch.device("cuda:1")
    layers = {0: LayerShape(1, 8, 8, here), 1: LayerShape(1, 8, 8, here), 2: LayerShape(1, 8, 8, there)}
    assert least_memory(layers, {here: 600, there: 600}, here) == 900
    assert least_memory(layers, {here: 600, there: 100}, here) == 300
    assert least_memory({0: LayerShape(1, 8, 8)}, {here: 600}, here) == 600


def test_an_engine_of_a_worker_takes_its_share_of_the_device() -> None:
    with device_with_kernels(memory=8 * MIB) as machine:
        loaded = model_on("cuda:0", "qwen2")
        Engine(loaded, engine_of(loaded).config.model_copy(update=SIZES))
        assert machine.allocated[0] <= 0.9 * machine.memory
