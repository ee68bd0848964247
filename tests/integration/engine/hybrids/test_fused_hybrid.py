"""The fused decoder on hybrids of Qwen3.5's kind: gates, heads that are rotated in part, norms around one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.integration.engine.hybrids.hybrid_models import HYBRIDS, hybrid_model
from tests.integration.engine.hybrids.test_recurrent_states import answers, beam_requests, greedy_requests
from tests.support.random_models import Pair, generate
from worker.engine.backend import LoadOptions
from worker.engine.model.fused_decoder import FusedDecoder
from worker.engine.model.fused_layers import halves_first
from worker.engine.model_loader import prepare_model
from worker.engine.request import ModelUnavailable

pytestmark = pytest.mark.usefixtures("two_threads")

CPU = torch.device("cpu")


def rotated(share: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": share}}


#: Rotated shares of a head; biases; one key head; attention first, and in every layer.
VARIANTS: dict[str, dict[str, Any]] = {
    "a quarter": {},
    "half": rotated(0.5),
    "all": rotated(1.0),
    "biases": {"attention_bias": True},
    "one key head": {"num_key_value_heads": 1, "head_dim": 32},
    "attention first": {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
    "attention alone": {"layer_types": ["full_attention"] * 3},
}


def random_model(variant: dict[str, Any]) -> Any:
    """A model in which each weight counts, those of norms too."""
    torch.manual_seed(5)
    config = AutoConfig.for_model("qwen3_5_text", **HYBRIDS["qwen3_5_text"] | variant)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "A_log" not in name and "dt_" not in name:
                parameter.normal_(0, 0.3 if parameter.dim() == 1 else 1.5 * parameter.shape[-1] ** -0.5)
    return model


def pair_of(model: Any, options: LoadOptions) -> Pair:
    return Pair(model, prepare_model("hybrid", copy.deepcopy(model), None, CPU, options))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("use_kernels", [True, False], ids=["kernels", "torch"])
def test_the_same_as_generate(variant: dict[str, Any], use_kernels: bool) -> None:
    model = random_model(variant)
    pair = pair_of(model, LoadOptions(use_kernels=use_kernels))
    assert isinstance(pair.loaded.model.decoder, FusedDecoder)
    requests = [*greedy_requests(), *beam_requests()]
    for output in pair.engine(max_num_seqs=12, prefill_tokens=128).generate(requests):
        request = next(each for each in requests if each.id == output.request_id)
        expected = generate(model, request.prompt_ids, request.params)
        assert answers(output) == [token_ids for token_ids, _ in expected], request.id


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_numbers_as_the_layers_own_code(dtype: torch.dtype) -> None:
    """In fp32 up to the order of sums, in half precision up to about as many roundings."""
    exact = logprobs(random_model({}), LoadOptions(fuse=False))
    model = random_model({}).to(dtype)
    fused, own = (logprobs(model, LoadOptions(fuse=fuse)) for fuse in (True, False))
    differences = [float((found - exact).abs().mean()) for found in (fused, own)]
    assert differences[0] <= 2 * differences[1] + 1e-4, differences


def logprobs(model: Any, options: LoadOptions) -> torch.Tensor:
    """Of the first tokens of some prompts, with those of the next likely ones."""
    requests = [
        type(each)(each.id, each.prompt_ids, each.params.model_copy(update={"max_new_tokens": 1}))
        for each in greedy_requests()
    ]
    found = {}
    for output in pair_of(model, options).engine(max_num_seqs=12).generate(requests):
        (done,) = output.completions
        assert done.trace is not None
        found[output.request_id] = done.trace.logprobs[0]
    return torch.tensor([found[request.id] for request in requests])


@pytest.mark.parametrize("variant", [{"head_dim": 7} | rotated(0.5), {"hidden_act": "gelu"}], ids=["odd heads", "gelu"])
def test_what_it_does_not_compute_is_left_to_the_layers_own_code(variant: dict[str, Any]) -> None:
    model = random_model(variant)
    pair = pair_of(model, LoadOptions())
    assert not isinstance(pair.loaded.model.decoder, FusedDecoder)
    for output in pair.engine(max_num_seqs=12).generate(greedy_requests()):
        request = greedy_requests()[output.request_id]
        assert answers(output) == [ids for ids, _ in generate(model, request.prompt_ids, request.params)]


def test_other_layers_beside_a_delta_net_are_not_fused() -> None:
    for kind in ("qwen3_next", "qwen3_5_moe_text", "olmo_hybrid"):
        assert not isinstance(pair_of(hybrid_model(kind), LoadOptions()).loaded.model.decoder, FusedDecoder)


def test_int8_is_not_for_recurrent_layers() -> None:
    with pytest.raises(ModelUnavailable, match="int8 needs a CPU, a C compiler and a model of Llama's family"):
        pair_of(hybrid_model("qwen3_5_text"), LoadOptions(quantize="int8"))


@pytest.mark.parametrize(("dim", "num_rotated"), [(2, 2), (8, 4), (16, 4), (256, 64)])
def test_a_part_rotated_is_a_whole_with_angles_of_zero(dim: int, num_rotated: int) -> None:
    order = halves_first(dim, num_rotated)
    assert sorted(order.tolist()) == list(range(dim))
    half = num_rotated // 2
    assert order[:half].tolist() == list(range(half))
    assert order[dim // 2 : dim // 2 + half].tolist() == list(range(half, num_rotated))
