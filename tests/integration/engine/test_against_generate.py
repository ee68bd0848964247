"""`transformers.generate`, one prompt at a time in fp32, is the oracle of greedy decoding and of beams."""

from __future__ import annotations

import random
from itertools import product

import pytest

from models.params import GenerationParams
from models.states import FinishReason, Strategy
from tests.support.random_models import ARCHITECTURES, VOCAB, generate, random_pair, random_prompts
from worker.engine.request import Request, RequestOutput

GREEDY_PER_ARCHITECTURE = 100
BEAMS_PER_ARCHITECTURE = 60
SCORE_TOLERANCE = 1e-4

#: With a dozen end tokens a sequence ends after some ten steps; with one it hardly ever does.
LIKELY_EOS = tuple(range(20, 32))
UNLIKELY_EOS = (2,)


def decode(engine_of: str, requests: list[Request], **config: object) -> dict[int, RequestOutput]:
    engine = random_pair(engine_of).engine(**config)
    outputs = {output.request_id: output for output in engine.generate(requests)}
    assert sorted(outputs) == sorted(request.id for request in requests)
    assert engine.scheduler.blocks.num_in_use == 0
    return outputs


#: Which prompts: one half always, the other in `make faults`.
HALVES = pytest.mark.parametrize("half", [1, pytest.param(2, marks=pytest.mark.long)])


@HALVES
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_is_identical(architecture: str, half: int) -> None:
    rng = random.Random(half)
    requests = []
    for index, prompt_ids in enumerate(random_prompts(GREEDY_PER_ARCHITECTURE // 2, seed=half)):
        params = GenerationParams(
            max_new_tokens=rng.randint(1, 40),
            eos_token_ids=LIKELY_EOS if index % 2 else UNLIKELY_EOS,
            repetition_penalty=1.3 if index % 5 == 0 else 1.0,
            min_new_tokens=1,
        )
        requests.append(Request(index, prompt_ids, params))
    outputs = decode(architecture, requests, max_num_seqs=24, prefill_tokens=64)
    reference = random_pair(architecture).reference
    for request in requests:
        ((expected, _),) = generate(reference, request.prompt_ids, request.params)
        assert list(outputs[request.id].completions[0].token_ids) == expected, request


@HALVES
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_beams_are_identical(architecture: str, half: int) -> None:
    cases = list(product((1, 2, 4, 8), (0.5, 1.0, 2.0), (LIKELY_EOS, UNLIKELY_EOS)))
    prompts = random_prompts(BEAMS_PER_ARCHITECTURE // 2, seed=10 * half, longest=40)
    rng = random.Random(half)
    requests = []
    for index, prompt_ids in enumerate(prompts):
        num_beams, length_penalty, eos_ids = cases[index % len(cases)]
        params = GenerationParams(
            strategy=Strategy.BEAM,
            num_beams=num_beams,
            num_return=num_beams,
            length_penalty=length_penalty,
            max_new_tokens=rng.choice([1, 6, 20]),
            eos_token_ids=eos_ids,
            repetition_penalty=1.2 if index % 7 == 0 else 1.0,
            min_new_tokens=1 if index % 5 == 0 else 0,
        )
        requests.append(Request(index, prompt_ids, params))
    outputs = decode(architecture, requests, max_num_seqs=64)
    reference = random_pair(architecture).reference
    for request in requests:
        expected = generate(reference, request.prompt_ids, request.params)
        completions = outputs[request.id].completions
        assert [list(done.token_ids) for done in completions] == [ids for ids, _ in expected], request
        if request.params.num_beams > 1:  # with one, generate falls back to greedy and returns no score
            for done, (_, score) in zip(completions, expected, strict=True):
                assert done.score == pytest.approx(score, abs=SCORE_TOLERANCE)


def test_a_single_beam_scores_its_own_sum() -> None:
    params = GenerationParams(
        strategy=Strategy.BEAM, num_beams=1, length_penalty=2.0, max_new_tokens=9, eos_token_ids=UNLIKELY_EOS
    )
    (done,) = decode("qwen2", [Request(0, (5, 6, 7), params)])[0].completions
    assert done.trace is not None
    assert done.score == pytest.approx(sum(done.trace.logprobs) / 9**2, abs=1e-6)
    assert done.finish_reason is FinishReason.LENGTH


def test_every_finished_hypothesis_is_kept_the_best_first() -> None:
    params = GenerationParams(
        strategy=Strategy.BEAM, num_beams=8, num_return=2, max_new_tokens=30, eos_token_ids=LIKELY_EOS
    )
    output = decode("llama-grouped", [Request(0, (9, 8, 7, 6), params)])[0]
    assert len(output.completions) == 2
    assert len(output.hypotheses) == 8
    scores = [hypothesis.score for hypothesis in output.hypotheses]
    assert scores == sorted(scores, reverse=True)
    assert [done.score for done in output.completions] == scores[:2]


def test_a_beam_trace_leads_back_to_its_hypothesis() -> None:
    params = GenerationParams(
        strategy=Strategy.BEAM, num_beams=4, num_return=4, max_new_tokens=12, eos_token_ids=UNLIKELY_EOS
    )
    for done in decode("qwen2", [Request(0, (5, 6, 7), params)])[0].completions:
        trace = done.trace
        assert trace is not None and trace.beams is not None
        assert len(trace.beams) == len(done.token_ids) == len(trace.logprobs)
        assert trace.beams[0] == 0 and all(0 <= beam < 4 for beam in trace.beams)
        assert done.cumulative_logprob == pytest.approx(sum(trace.logprobs), abs=1e-4)


def test_the_random_models_are_worth_comparing() -> None:
    """A model that always says the same would make the comparisons above empty."""
    for architecture in ARCHITECTURES:
        requests = [
            Request(index, prompt_ids, GenerationParams(max_new_tokens=20, eos_token_ids=UNLIKELY_EOS))
            for index, prompt_ids in enumerate(random_prompts(20, seed=4))
        ]
        answers = [done.completions[0].token_ids for done in decode(architecture, requests).values()]
        assert len(set(answers)) >= 18, architecture
        assert len({token_id for answer in answers for token_id in answer}) > VOCAB // 15, architecture
