"""A hybrid's answers and stored numbers are the same bits alone, in a batch, and with prompts in one piece or many."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import pytest
import torch

from models.params import GenerationParams
from models.states import Strategy
from tests.integration.engine.hybrids.hybrid_models import HYBRIDS, LARGE, LARGE_STATES, hybrid_pair
from tests.support.random_models import VOCAB
from worker.engine.backend import LoadOptions
from worker.engine.request import Request, RequestOutput

pytestmark = pytest.mark.usefixtures("two_threads")

#: One kind for each rule of recurrence: gated delta, Kimi's, short convolution, Mamba 2.
RULES = ("qwen3_5_text", "kimi_linear", "lfm2_moe", "mamba2")


def requests() -> list[Request]:
    rng = random.Random(11)
    kinds: list[dict[str, Any]] = [{"strategy": Strategy.GREEDY}, {"strategy": Strategy.SAMPLE, "n": 2}]
    return [
        Request(
            index,
            tuple(rng.choices(range(3, VOCAB), k=length)),
            GenerationParams(max_new_tokens=5, eos_token_ids=(2,), seed=index, **kinds[index % 2]),
        )
        for index, length in enumerate((1, 3, 30, 65, 90, 129, 150, 197))
    ]


def content(output: RequestOutput) -> dict[str, Any]:
    """Everything but the times."""
    return {name: value for name, value in asdict(output).items() if not name.endswith("_seconds")}


def check(kind: str, dtype: torch.dtype, options: LoadOptions = LoadOptions()) -> None:
    pair = hybrid_pair(kind, dtype, options)
    together = {o.request_id: content(o) for o in pair.engine(max_num_seqs=16).generate(requests())}
    in_pieces = pair.engine(max_num_seqs=2, prefill_tokens=64)
    for request in requests():
        (alone,) = in_pieces.generate([request])
        assert content(alone) == together[request.id], len(request.prompt_ids)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind in RULES else pytest.mark.long) for kind in sorted(HYBRIDS)],
)
def test_fp32(kind: str) -> None:
    check(kind, torch.float32)


@pytest.mark.parametrize("kind", [RULES[0], *(pytest.param(kind, marks=pytest.mark.long) for kind in RULES[1:])])
def test_bf16(kind: str) -> None:
    check(kind, torch.bfloat16)


@pytest.mark.parametrize(
    "kind", ["mamba2", *(pytest.param(kind, marks=pytest.mark.long) for kind in LARGE_STATES if kind != "mamba2")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_of_large_states(dtype: torch.dtype, kind: str) -> None:
    check(f"{kind}{LARGE}", dtype)


@pytest.mark.parametrize("kind", ["qwen3_next", "kimi_linear"])  # the second has values of another size than keys
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_kernels(dtype: torch.dtype, kind: str) -> None:
    check(kind, dtype, LoadOptions(use_kernels=False))
