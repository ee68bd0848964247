"""Every kind of recurrent layer, in mixed batches with refills, forks, beams and cancellations, against `generate`."""

from __future__ import annotations

import random

import pytest

from models.params import GenerationParams
from models.states import Strategy
from tests.integration.engine.hybrids.hybrid_models import HYBRIDS, hybrid_pair
from tests.support.random_models import VOCAB, generate
from worker.engine.engine import Engine
from worker.engine.request import CapacityExceeded, Request, RequestOutput

#: Around the borders of blocks, of chunks and of the layers' own chunks; one token alone; a rest of one token.
LENGTHS = (1, 2, 5, 17, 63, 64, 65, 129, 130, 200)
LIKELY_EOS = tuple(range(20, 28))
CANCELLED = 900

#: Layers of the Mamba 1 kind begin anew with every part of a prompt.
FORGETFUL = {"mamba", "falcon_mamba", "jamba"}


def prompts(seed: int = 3) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.choices(range(3, VOCAB), k=length)) for length in LENGTHS]


def greedy_requests() -> list[Request]:
    return [
        Request(index, prompt_ids, GenerationParams(max_new_tokens=5 + index % 7, eos_token_ids=(2,)))
        for index, prompt_ids in enumerate(prompts())
    ]


def beam_requests() -> list[Request]:
    params = GenerationParams(
        strategy=Strategy.BEAM, num_beams=4, num_return=4, max_new_tokens=6, eos_token_ids=LIKELY_EOS
    )
    return [Request(100 + index, prompts()[index], params) for index in (1, 7)]


def sample_requests() -> list[Request]:
    params = GenerationParams(strategy=Strategy.SAMPLE, n=4, seed=7, max_new_tokens=6, eos_token_ids=(2,))
    return [Request(200 + index, prompts()[index], params) for index in (2, 8)]


def decode_with_a_cancellation(engine: Engine, requests: list[Request]) -> dict[int, RequestOutput]:
    for request in requests:
        engine.submit(request)
    engine.submit(Request(CANCELLED, prompts()[4], GenerationParams(max_new_tokens=60, eos_token_ids=(2,))))
    outputs: dict[int, RequestOutput] = {}
    for step in range(10_000):
        if not engine.has_work:
            break
        outputs |= {output.request_id: output for output in engine.step()}
        if step == 6:
            engine.cancel(CANCELLED)
    return outputs


def answers(output: RequestOutput) -> list[list[int]]:
    assert output.error is None
    return [list(done.token_ids) for done in output.completions]


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_mixed_batch_gives_what_generate_gives(kind: str) -> None:
    pair = hybrid_pair(kind)
    requests = [*greedy_requests(), *beam_requests(), *sample_requests()]
    random.Random(5).shuffle(requests)
    engine = pair.engine(max_num_seqs=12, prefill_tokens=128)
    outputs = decode_with_a_cancellation(engine, requests)
    for request in requests:
        if request.params.strategy is Strategy.SAMPLE:
            (alone,) = pair.engine(max_num_seqs=4).generate([request])
            expected = answers(alone)
        else:
            expected = [token_ids for token_ids, _ in generate(pair.reference, request.prompt_ids, request.params)]
        assert answers(outputs[request.id]) == expected, (request.id, len(request.prompt_ids))
    assert engine.scheduler.blocks.num_states_in_use == 0
    assert engine.scheduler.blocks.num_in_use == 0


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_prompt_is_divided_where_its_layers_remember(kind: str) -> None:
    states = hybrid_pair(kind).loaded.model.states
    assert states.splits_prompts is (kind not in FORGETFUL)


def test_states_are_taken_from_the_kv_memory(caplog: pytest.LogCaptureFixture) -> None:
    pair = hybrid_pair("qwen3_5_text")
    gib = 2**30
    fitting = pair.engine(max_num_seqs=64, kv_memory=20 * pair.loaded.model.states.num_bytes / gib)
    assert fitting.scheduler.max_num_seqs == 9  # and one for prompts that begin alike
    assert "recurrent states of 9 sequences" in caplog.text
    outputs = {output.request_id: answers(output) for output in fitting.generate(greedy_requests())}
    (alone,) = pair.engine().generate([greedy_requests()[3]])
    assert outputs[3] == answers(alone)
    with pytest.raises(CapacityExceeded, match="holds no recurrent state .*raise --kv-memory"):
        pair.engine(kv_memory=1e-6)


def test_after_memory_ran_out_the_same_tokens_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = hybrid_pair("lfm2")
    expected = {output.request_id: answers(output) for output in pair.engine().generate(greedy_requests())}
    engine = pair.engine(max_num_seqs=8, prefill_tokens=64)
    launch, steps = engine._backend.launch, iter(range(10_000))

    def failing_once(*args: object) -> object:
        if next(steps) == 4:
            raise MemoryError("out of memory")
        return launch(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(engine._backend, "launch", failing_once)
    outputs = {output.request_id: answers(output) for output in engine.generate(greedy_requests())}
    assert engine.stats.num_out_of_memory == 1
    assert outputs == expected
