"""The whole engine on a pretend CUDA device gives the CPU's tokens, whatever is asked of it."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tests.integration.engine.hybrids.hybrid_models import hybrid_pair
from tests.support.pretend_cuda.engines import (
    answers,
    device_with_kernels,
    engine_of,
    mixed_requests,
    model_on,
    tokens_of,
)
from tests.support.pretend_cuda.graphs import CUDAGraph
from tests.support.pretend_cuda.kernels import ReferenceLayerKernels
from tests.support.pretend_cuda.machine import CaptureForbidden, DeviceMismatch, OverwrittenInFlight
from tests.support.pretend_cuda.runtime import Stream
from tests.support.random_models import ARCHITECTURES, altered, random_pair
from worker.engine.cuda import backend
from worker.engine.cuda.decode_graphs import graph_buckets, static_batch
from worker.engine.cuda.kernels import delta_rule
from worker.engine.cuda.layers import decoder as decoder_module
from worker.engine.cuda.paged_attention import NoKernel
from worker.engine.model.attention import AttentionStep
from worker.engine.model.device_copies import fetch, send
from worker.engine.model.fused_decoder import FusedDecoder
from worker.engine.model.fused_layers import FusedDeltaNet
from worker.engine.model.kv_cache import KVCache
from worker.engine.model.layer_modules import NormModule, SwiGLUModule
from worker.engine.model.recurrent.delta_net import Run, batch_of
from worker.engine.model.recurrent.delta_rule import delta_rule_in_torch
from worker.engine.model.recurrent.state_pool import StatePool
from worker.engine.model.row_operations import Rotation
from worker.engine.model.transformers_decoder import TransformersDecoder
from worker.engine.model_loader import LoadedModel, prepare_model
from worker.engine.request import Request


def expected_of(architecture: str, requests: list[Request]) -> dict[int, Any]:
    return answers(engine_of(random_pair(architecture).loaded), requests)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_tokens_as_on_the_cpu(architecture: str) -> None:
    check_tokens(architecture, 10)


@pytest.mark.long
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_tokens_as_on_the_cpu_at_full_size(architecture: str) -> None:
    check_tokens(architecture, 80)


def hybrid_on_the_device(kind: str) -> LoadedModel:
    with patch.object(delta_rule, "delta_rule", delta_rule_in_torch):
        return prepare_model(kind, copy.deepcopy(hybrid_pair(kind).reference), None, torch.device("cuda:0"))


@pytest.mark.parametrize("kind", ["qwen3_5_text", "lfm2", "falcon_h1", "mamba"])
def test_recurrent_states_on_the_device(kind: str) -> None:
    """States are read and written by recorded steps; a model of states alone has none."""
    requests = mixed_requests(10)
    expected = answers(engine_of(hybrid_pair(kind).loaded), requests)
    with device_with_kernels() as machine:
        assert answers(engine_of(hybrid_on_the_device(kind)), requests) == expected
        assert (machine.activity.graph_launches > 0) is (kind != "mamba")


def test_recurrent_states_of_a_step_that_the_host_sends() -> None:
    """Without the device's sampler a recorded step gets its rows from the host."""
    requests = mixed_requests(14)
    expected = answers(engine_of(hybrid_pair("lfm2").loaded), requests)
    broken = patch.object(backend, "check_sampler", side_effect=NoKernel("none here"))
    with device_with_kernels() as machine, broken:
        assert answers(engine_of(hybrid_on_the_device("lfm2")), requests) == expected
        assert machine.activity.graph_launches > 0


def test_recurrent_states_after_memory_ran_out() -> None:
    requests = mixed_requests(10)
    expected = answers(engine_of(hybrid_pair("lfm2").loaded), requests)
    with device_with_kernels() as machine:
        engine = engine_of(hybrid_on_the_device("lfm2"))
        launch, due = engine._backend.launch, [4, 9]

        def failing(*arguments: Any) -> Any:
            if due and engine.stats.num_steps >= due[0]:
                due.pop(0)
                raise torch.OutOfMemoryError("CUDA out of memory")
            return launch(*arguments)

        with patch.object(engine._backend, "launch", failing):
            assert answers(engine, requests) == expected
        assert engine.stats.num_out_of_memory == 2 and machine.activity.graph_launches > 0


def test_a_packed_delta_net_computes_on_the_devices_kernel() -> None:
    pair, requests = hybrid_pair("qwen3_5_text"), mixed_requests(3)
    launches: list[Any] = []
    expected = answers(engine_of(pair.loaded), requests)

    def reference(*arguments: Any) -> Tensor:
        launches.append(arguments)
        return delta_rule_in_torch(*arguments)

    with device_with_kernels(), patch.object(delta_rule, "delta_rule", reference):
        loaded = prepare_model("hybrid", copy.deepcopy(pair.reference), None, torch.device("cuda:0"))
        assert len(launches) == 1  # of the check when the model is loaded
        assert answers(engine_of(loaded), requests) == expected
    assert len(launches) > 1


def uncompiled(*_: Any) -> Tensor:
    raise RuntimeError("no ptxas")


def wrong(*arguments: Any) -> Tensor:
    return delta_rule_in_torch(*arguments) * torch.nan


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [(uncompiled, "it cannot be compiled, RuntimeError: no ptxas"), (wrong, "its results differ from torch's by nan")],
)
def test_a_delta_net_kernel_that_does_not_work_is_left_out(
    kernel: Any, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    with device_with_kernels(), patch.object(delta_rule, "delta_rule", kernel):
        loaded = prepare_model(
            "hybrid", copy.deepcopy(hybrid_pair("qwen3_5_text").reference), None, torch.device("cuda:0")
        )
        assert f"without our kernel: {problem}" in caplog.text
        assert len(answers(engine_of(loaded), mixed_requests(1))) == 1


def check_tokens(architecture: str, count: int) -> None:
    requests = mixed_requests(count)
    expected = expected_of(architecture, requests)
    with device_with_kernels() as machine:
        engine = engine_of(model_on("cuda:0", architecture))
        assert "paged kernel" in engine.loaded.model.description
        assert answers(engine, requests) == expected
        assert machine.activity.graph_launches > 0


def test_with_the_second_device_of_two() -> None:
    """The first is the current one, as in a process that named none."""
    requests = mixed_requests(10)
    with device_with_kernels(num_devices=2) as machine:
        assert answers(engine_of(model_on("cuda:1", "qwen2")), requests) == expected_of("qwen2", requests)
        assert machine.peak[0] == 0


def test_every_graph_is_recorded_at_the_start() -> None:
    """Two for the largest bucket where the cache's size is to be found: one of them only to measure it."""
    requests = mixed_requests(10)
    expected = expected_of("qwen2", requests)
    for kv_memory, num_dropped in ((0.01, 0), (None, 1)):
        with device_with_kernels(memory=2**24) as machine:
            before, before_streams = CUDAGraph.num_made, Stream.num_made
            engine = engine_of(model_on("cuda:0", "qwen2"), kv_memory=kv_memory, prefill_tokens=64)
            assert CUDAGraph.num_made - before == len(graph_buckets(12)) + num_dropped
            assert machine.allocated[0] <= 0.9 * machine.memory
            assert Stream.num_made - before_streams == 1 + num_dropped  # cuBLAS keeps a workspace for each
            assert answers(engine, requests) == expected
            assert CUDAGraph.num_made - before == len(graph_buckets(12)) + num_dropped


def test_a_steps_tensors_go_with_it_and_cudnn_plans_nothing() -> None:
    """Without a cyclic collector; of a step in a reference cycle the masks of all its tiles would wait for it."""
    with device_with_kernels():
        loaded = model_on("cuda:0", "qwen2", use_kernels=False)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        seen: list[Any] = []

        def noting(step: Any) -> Tensor:
            seen.append(weakref.ref(step.batch))
            return loaded.model.decoder(step)

        gc.disable()
        try:
            answers(engine_of(altered(loaded, decoder=noting)), mixed_requests(2))
            assert len(seen) > 2 and all(batch() is None for batch in seen)
        finally:
            gc.enable()


def test_without_a_kernel() -> None:
    requests = mixed_requests(10)
    with device_with_kernels():
        engine = engine_of(model_on("cuda:0", "qwen2", use_kernels=False))
        assert answers(engine, requests) == expected_of("qwen2", requests)


@pytest.mark.parametrize("config", [{"prefill_tokens": 64}, {"prefill_tokens": 16, "block_size": 32}], ids=str)
@pytest.mark.parametrize("use_graphs", [False, True])
def test_steps_of_fixed_sizes_where_a_layer_has_no_kernels(
    use_graphs: bool, config: dict[str, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The scheduler fills whole blocks, at least one, whatever number of prompt tokens is asked for."""
    requests = mixed_requests(10)
    expected = expected_of("qwen2", requests)
    with device_with_kernels():
        monkeypatch.setattr(ReferenceLayerKernels, "rms_norm", lambda _, rows, *__: torch.full_like(rows, torch.nan))
        loaded = model_on("cuda:0", "qwen2", deterministic=True)
        assert "their results differ from torch's by nan" in caplog.text
        found, shapes = shapes_of_steps(loaded, requests, use_graphs=use_graphs, **config)
    assert found == expected
    assert shapes == {(12, 12), (64 if config["prefill_tokens"] == 64 else 32, 12)}


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2-softcap", "gpt-neox"])
def test_deterministic_steps_have_their_own_sizes(architecture: str) -> None:
    requests = mixed_requests(10)
    expected = expected_of(architecture, requests)
    with device_with_kernels():
        loaded = model_on("cuda:0", architecture, deterministic=True)
        assert "own gemm" in loaded.model.gemm and not loaded.model.needs_fixed_sizes
        found, shapes = shapes_of_steps(loaded, requests, use_graphs=False)
    assert found == expected
    assert len({rows for rows, _ in shapes}) >= 5


def shapes_of_steps(
    loaded: LoadedModel, requests: list[Request], **config: Any
) -> tuple[dict[int, Any], set[tuple[int, int]]]:
    """The requests' tokens, and rows and logits of each step that decodes them; not of those at the start."""
    shapes = set[tuple[int, int]]()

    def noting(step: Any) -> Tensor:
        shapes.add((step.batch.input_ids.shape[1], len(step.batch.logit_rows)))
        return loaded.model.decoder(step)

    engine = engine_of(altered(loaded, decoder=noting), **config)
    in_graphs = shapes & {(12, 12)}
    shapes.clear()
    return answers(engine, requests), shapes | in_graphs


@pytest.mark.parametrize("architecture", ["qwen2", "llama-grouped", "qwen3", "mistral-window"])
@pytest.mark.parametrize(("deterministic", "most"), [(False, 9), (True, 9)])
def test_a_fused_layer_is_few_launches(architecture: str, deterministic: bool, most: int) -> None:
    """Attention takes two where few rows run, and a batch-invariant matmul too."""
    with device_with_kernels() as machine:
        loaded = model_on("cuda:0", architecture, deterministic=deterministic)
        decoder = loaded.model.decoder
        assert isinstance(decoder, FusedDecoder)
        batch = static_batch(2, 16, 16, loaded.model.device)
        cache = KVCache(loaded.model.layers, 2, 16, torch.float32, loaded.model.device)
        step = AttentionStep(batch, cache, loaded.model.paged_attention)
        hidden = torch.ones(2, 64, device="cuda:0")
        angles = torch.ones(2, 1, decoder.head_dim, device="cuda:0")
        machine.activity.clear()
        decoder.layers[0](hidden, Rotation(angles, angles), step)
        assert machine.activity.num_kernels <= most, machine.activity.kernels


def test_a_fused_delta_net_is_few_launches() -> None:
    """Two norms, the delta rule, swish, and four matmuls."""

    def rule(net: Any, projected: Tensor, states: Any, pools: Any) -> Tensor:
        assert states.num_decoding == len(projected) and len(pools) == 2
        return projected[:, : net.value_size].clone()

    with device_with_kernels() as machine, patch.object(delta_rule, "delta_rule", delta_rule_in_torch):
        model = copy.deepcopy(hybrid_pair("qwen3_5_text").reference)
        loaded = prepare_model("hybrid", model, None, torch.device("cuda:0"))
        decoder, device = loaded.model.decoder, loaded.model.device
        assert isinstance(decoder, FusedDecoder)
        cache = KVCache(loaded.model.layers, 2, 16, torch.float32, device)
        step = AttentionStep(batch_of([Run(0), Run(1)], device), cache, None, StatePool(loaded.model.states, 2))
        layer = decoder.layers[0]
        assert isinstance(layer.mixer, FusedDeltaNet)
        hidden, angles = torch.ones(2, 64, device=device), torch.ones(2, 1, decoder.head_dim, device=device)
        machine.activity.clear()
        replace(layer, mixer=replace(layer.mixer, rule=rule))(hidden, Rotation(angles, angles), step)
        assert machine.activity.num_kernels <= 8, machine.activity.kernels


def test_layers_of_transformers_have_our_modules() -> None:
    """Gemma's activation is no swish; its norms are relative to one. A module is replaced where its outputs agree."""
    requests = mixed_requests(4)
    for architecture, fuse, norms, layers in (("gemma2-softcap", True, 9, 0), ("qwen3", False, 9, 2)):
        expected = expected_of(architecture, requests)
        with device_with_kernels():
            with patch.object(decoder_module, "TransformersDecoder", wraps=TransformersDecoder) as made:
                loaded = model_on("cuda:0", architecture, fuse=fuse)
            modules = list(made.call_args.args[0].modules())
            assert sum(isinstance(each, NormModule) for each in modules) == norms
            assert sum(isinstance(each, SwiGLUModule) for each in modules) == layers
            assert answers(engine_of(loaded), requests) == expected


def test_cancelled_requests_and_memory_that_runs_out() -> None:
    requests = mixed_requests(20)
    expected = expected_of("qwen2", requests)
    with device_with_kernels():
        loaded = model_on("cuda:0", "qwen2")
        due: list[int] = []

        def decode(step: Any) -> Tensor:
            if due and engine.stats.num_steps >= due[0] and len(engine.scheduler.running) > 1:
                due.pop(0)
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loaded.model.decoder(step)

        engine = engine_of(altered(loaded, decoder=decode), use_graphs=False)
        due += [5, 12]
        for request in requests:
            engine.submit(request)
        found: dict[int, Any] = {}
        for number in range(10_000):
            found |= tokens_of(engine.step())
            if number == 3:
                assert all(engine.cancel(request_id) for request_id in (2, 3, 19) if request_id not in found)
            if not engine.has_work:
                break
        assert engine.stats.num_out_of_memory == 2
        assert set(expected) - set(found) <= {2, 3, 19} and found.items() <= expected.items()


class TestThePretendDevice:
    """The device itself: it fails and waits where a real one does."""

    def test_refuses_tensors_of_two_devices(self) -> None:
        with device_with_kernels(num_devices=2):
            here, there = torch.ones(2, device="cuda:0"), torch.ones(2, device="cuda:1")
            for stranger in (there, torch.ones(2)):
                with pytest.raises(DeviceMismatch):
                    here + stranger
            assert (here + there.to("cuda:0")).tolist() == [2, 2]

    def test_notes_every_wait(self) -> None:
        with device_with_kernels() as machine:
            values = torch.ones(3, device="cuda:0")
            machine.activity.clear()
            assert bool(values.all()) and float(values[0]) == 1 and len(values.nonzero()) == 3
            values.cpu()
            values[[0, 1]]
            torch.ones(2).to("cuda:0")
            waits = [wait.split(" at ")[0] for wait in machine.activity.waits]
            assert waits[:3] == ["item", "item", "nonzero"] and set(waits[3:]) == {
                "blocking copy to the host", "blocking copy to the device"
            }  # fmt: skip
            machine.activity.clear()
            send(torch.ones(2), values.device)
            assert fetch(values)().tolist() == [1, 1, 1]
            assert machine.activity.waits == []

    def test_a_copy_to_the_host_is_garbage_until_its_event(self) -> None:
        with device_with_kernels(num_devices=2):
            values = torch.ones(3, device="cuda:1")
            on_host = torch.empty(3, pin_memory=True)
            on_host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()  # on the stream of cuda:0
            event.synchronize()
            assert on_host.isnan().all()
            event.record(torch.cuda.current_stream(values.device))
            event.synchronize()
            assert on_host.tolist() == [1, 1, 1]

    def test_pinned_memory_must_stay_until_it_is_read(self) -> None:
        with device_with_kernels():
            pinned = torch.ones(2).pin_memory()
            pinned.to("cuda:0", non_blocking=True)
            pinned += 1
            with pytest.raises(OverwrittenInFlight):
                torch.cuda.synchronize()

    def test_a_capture_runs_nothing_and_refuses_what_waits(self) -> None:
        with device_with_kernels():
            values, graph = torch.ones(2, device="cuda:0"), torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                doubled = values * 2
                values.add_(1)
            assert values.tolist() == [1, 1] and doubled.isnan().all()
            graph.replay()
            graph.replay()
            assert values.tolist() == [3, 3] and doubled.tolist() == [4, 4]
            forbidden = (lambda: bool(values.all()), values.cpu, values.nonzero, lambda: values[torch.tensor([0])])
            for each in forbidden:
                with pytest.raises(CaptureForbidden), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    each()

    def test_memory_is_counted_and_runs_out(self) -> None:
        with device_with_kernels(memory=1000):
            kept = torch.zeros(100, device="cuda:0")
            view = kept[:50]
            with pytest.raises(torch.OutOfMemoryError):
                torch.zeros(200, device="cuda:0")
            del kept
            assert torch.cuda.memory_allocated() == 400
            del view
            assert torch.cuda.memory_allocated() == 0
