"""Beginnings that hybrids' prompts share are computed once, and answers have the same bits as if each were alone."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import pytest
import torch

from models.params import GenerationParams
from models.states import Strategy
from tests.integration.engine.hybrids.hybrid_models import hybrid_pair
from tests.support.random_models import VOCAB, Pair, random_pair
from worker.engine.engine import Engine
from worker.engine.request import Request, RequestOutput

pytestmark = pytest.mark.usefixtures("two_threads")

KINDS: list[dict[str, Any]] = [
    {"strategy": Strategy.GREEDY},
    {"strategy": Strategy.SAMPLE, "n": 3},
    {"strategy": Strategy.BEAM, "num_beams": 3},
]


def requests() -> list[Request]:
    """Two stems, one within the other, around the borders of blocks and of the layers' chunks."""
    rng = random.Random(5)
    short = rng.choices(range(3, VOCAB), k=130)
    stems = [short, [*short, *rng.choices(range(3, VOCAB), k=70)]]
    return [
        Request(
            index,
            (*stems[index % 2], *rng.choices(range(3, VOCAB), k=length)),
            GenerationParams(max_new_tokens=5, eos_token_ids=(2,), seed=index, **KINDS[index % 3]),
        )
        for index, length in enumerate((1, 20, 0, 57, 62, 63, 64, 5, 126, 1, 1, 40))
    ]


def content(output: RequestOutput) -> dict[str, Any]:
    """Everything but the times."""
    assert output.error is None
    return {name: value for name, value in asdict(output).items() if not name.endswith("_seconds")}


def decoded(engine: Engine) -> dict[int, dict[str, Any]]:
    return {output.request_id: content(output) for output in engine.generate(requests())}


def num_prefilled(pair: Pair, **config: Any) -> int:
    engine = pair.engine(block_size=64, **config)
    decoded(engine)
    return engine.stats.num_prefill_tokens


LONG_KINDS = [pytest.param(kind, marks=pytest.mark.long) for kind in ("mamba2", "kimi_linear")]
LONG_DTYPES = [pytest.param(torch.bfloat16, marks=pytest.mark.long, id="bf16")]


@pytest.mark.parametrize("kind", ["qwen3_5_text", "lfm2_moe", *LONG_KINDS])
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, id="fp32"), *LONG_DTYPES])
def test_answers_have_the_same_bits(kind: str, dtype: torch.dtype) -> None:
    pair = hybrid_pair(kind, dtype)
    expected = decoded(pair.engine(share_prefixes=False))
    engine = pair.engine(max_num_seqs=6, prefill_tokens=128)
    assert decoded(engine) == expected
    first = engine.stats.num_prefill_tokens
    assert decoded(engine) == expected  # from the states that the first time left
    total = sum(len(request.prompt_ids) for request in requests())
    assert first < 0.6 * total and engine.stats.num_prefill_tokens - first < 0.6 * total
    assert engine.scheduler.blocks.num_states_in_use == engine.scheduler.blocks.num_in_use == 0


def test_as_few_prompt_tokens_are_computed_as_with_plain_attention() -> None:
    plain = num_prefilled(random_pair("qwen2"))
    assert num_prefilled(hybrid_pair("qwen3_5_text")) <= 1.3 * plain
    assert num_prefilled(hybrid_pair("qwen3_5_text"), share_prefixes=False) > 2 * plain


def test_a_layer_that_forgets_shares_nothing() -> None:
    pair = hybrid_pair("jamba")
    assert num_prefilled(pair) == sum(len(request.prompt_ids) for request in requests())


def test_the_prompt_that_computes_for_others_is_cancelled() -> None:
    pair = hybrid_pair("lfm2_moe")
    expected = decoded(pair.engine(share_prefixes=False))
    engine = pair.engine(max_num_seqs=6, prefill_tokens=64)
    for request in requests():
        engine.submit(request)
    outputs = engine.step()
    (computing,) = [group.request.id for group in engine.scheduler.running]
    assert engine.cancel(computing)
    while engine.has_work:
        outputs += engine.step()
    assert {output.request_id: content(output) for output in outputs} == {
        index: answer for index, answer in expected.items() if index != computing
    }


def test_memory_that_runs_out_while_states_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = hybrid_pair("lfm2_moe")
    expected = decoded(pair.engine(share_prefixes=False))
    engine = pair.engine(max_num_seqs=6, prefill_tokens=64)
    launch = engine._backend.launch

    def failing_once(*args: Any) -> Any:
        if len(engine.scheduler.running) > 1 and not engine.stats.num_out_of_memory:
            raise MemoryError("out of memory")
        return launch(*args)

    monkeypatch.setattr(engine._backend, "launch", failing_once)
    assert decoded(engine) == expected
    assert engine.stats.num_out_of_memory == 1
