"""A packed Gated DeltaNet takes the place of layers that compute the same, and its paths give the same tokens."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.integration.engine.hybrids.hybrid_models import HYBRIDS, hybrid_model, hybrid_pair
from tests.integration.engine.hybrids.test_recurrent_states import (
    answers,
    beam_requests,
    decode_with_a_cancellation,
    greedy_requests,
    sample_requests,
)
from worker.engine.backend import Backend, DeviceModel, LoadOptions
from worker.engine.loading.prepare import load_packed
from worker.engine.model.recurrent.delta_net import DeltaNetPacker, PackedDeltaNet
from worker.engine.model.recurrent.mixer import RecurrentMixer
from worker.engine.model.recurrent.state_pool import StateKey

pytestmark = pytest.mark.usefixtures("two_threads")

CPU = torch.device("cpu")

#: Separate projections, and those grouped by head, with a mixture of experts.
PACKED = {"qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"}


def mixers(model: nn.Module) -> list[RecurrentMixer]:
    return [module for module in model.modules() if isinstance(module, RecurrentMixer)]


def load(model: Any) -> DeviceModel:
    return load_packed("model", model, Backend, CPU, LoadOptions())


@pytest.mark.parametrize("kind", sorted(HYBRIDS))
def test_layers_are_known_by_what_they_compute(kind: str) -> None:
    model = hybrid_model(kind)
    load(model)
    assert {isinstance(mixer, PackedDeltaNet) for mixer in mixers(model)} == {kind in PACKED}


def delta_nets(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "A_log")]


def doubled(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def other_activation(layer: Any) -> None:
    layer.activation = "gelu"


def other_norm(layer: Any) -> None:
    layer.norm.register_forward_hook(doubled)


def other_projection(layer: Any) -> None:
    layer.out_proj.register_forward_hook(doubled)


class GateAlone(nn.Module):
    def forward(self, rows: Tensor, gate: Tensor) -> Tensor:
        return rows * gate


def no_norm(layer: Any) -> None:
    layer.norm = GateAlone()


@pytest.mark.parametrize("change", [other_activation, other_norm, other_projection, no_norm], ids=lambda c: c.__name__)
def test_a_layer_that_computes_something_else_is_not_packed(change: Any) -> None:
    model = hybrid_model("qwen3_5_text")
    for layer in delta_nets(model):
        change(layer)
    states = load(model).states
    assert len(mixers(model)) == 2 and not any(isinstance(mixer, PackedDeltaNet) for mixer in mixers(model))
    assert {shape.shape for key, shape in states.shapes.items() if key.kind == "conv"} == {(128, 4)}


@pytest.mark.parametrize(("name", "value"), [("num_k_heads", 3), ("head_k_dim", 8), ("head_v_dim", 32)])
def test_a_layer_whose_sizes_do_not_fit_is_not_packed(name: str, value: int) -> None:
    (layer, _) = delta_nets(hybrid_model("qwen3_5_text"))
    setattr(layer, name, value)
    keys = (StateKey(0, "conv"), StateKey(0, "recurrent"))
    assert DeltaNetPacker().packed(layer, "cache_params", keys) is None
    assert sum(1 for _ in layer.parameters()) > 0


@pytest.mark.parametrize("kind", sorted(PACKED))
def test_c_torch_and_the_layers_own_code_give_the_same_tokens(kind: str) -> None:
    """Mixed batches with refills, chunked prompts, n samples, beams and a cancellation."""
    requests = [*greedy_requests(), *beam_requests(), *sample_requests()]
    random.Random(5).shuffle(requests)
    found = []
    for options in (LoadOptions(), LoadOptions(use_kernels=False), LoadOptions(fuse=False)):
        engine = hybrid_pair(kind, options=options).engine(max_num_seqs=12, prefill_tokens=128)
        outputs = decode_with_a_cancellation(engine, requests)
        found.append({request.id: answers(outputs[request.id]) for request in requests})
    assert found[1] == found[0] and found[2] == found[0]


def test_a_layers_own_weights_are_not_kept_twice() -> None:
    model = hybrid_model("qwen3_5_text")
    before = sum(parameter.numel() for parameter in model.parameters())
    own = {id(parameter): parameter for layer in delta_nets(model) for parameter in layer.parameters()}  # kept alive
    load(model)
    after = list(model.parameters())
    assert not {id(parameter) for parameter in after} & own.keys()
    assert sum(parameter.numel() for parameter in after) < before
