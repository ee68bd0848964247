"""The engine alone: stopping, text, memory and refused requests."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.params import GenerationParams
from models.states import FinishReason, Strategy
from tests.conftest import TOY_MODEL
from tests.support.random_models import VOCAB, WINDOW, random_pair, random_prompts
from worker.engine.backend import Backend
from worker.engine.engine import Engine
from worker.engine.request import (
    CapacityExceeded,
    Completion,
    EngineError,
    InvalidRequest,
    ModelUnavailable,
    PromptTooLong,
    Request,
    RequestOutput,
)
from worker.engine.sampling.in_flight import InFlight
from worker.engine.scheduling.step_plan import StepPlan


@pytest.fixture(scope="module")
def toy() -> Engine:
    return Engine.load(str(TOY_MODEL), dtype="float32", kv_memory=0.1, max_num_seqs=32)


STORY = (
    "<|im_start|>system\nYou are a storyteller. Generate a story based on user message.<|im_end|>\n<|im_start|>user\n"
    "Generate me a very short story about a tiny hedgehog named Sonic.<|im_end|>\n<|im_start|>assistant\n"
)


def ask(engine: Engine, prompt: str = STORY, **params: Any) -> Completion:
    request = Request(0, engine.encode(prompt), GenerationParams(**{"max_new_tokens": 120, **params}))
    (output,) = engine.generate([request])
    assert output.error is None, output.error
    return output.completions[0]


def refused(engine: Engine, request: Request) -> EngineError:
    (output,) = engine.generate([request])
    assert output.error is not None and not output.completions
    return output.error


# Stopping


def test_each_way_to_stop(toy: Engine) -> None:
    whole = ask(toy)
    assert whole.finish_reason is FinishReason.EOS
    assert whole.token_ids[-1] in toy.loaded.limits.eos_token_ids
    cut = ask(toy, max_new_tokens=7)
    assert (cut.finish_reason, cut.token_ids) == (FinishReason.LENGTH, whole.token_ids[:7])
    stopped = ask(toy, stop=(".",))
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.text == whole.text[: whole.text.index(".")]


def test_the_end_may_be_chosen_and_ignored(toy: Engine) -> None:
    whole = ask(toy)
    third = whole.token_ids[2]
    assert ask(toy, eos_token_ids=(third,)).token_ids == whole.token_ids[: whole.token_ids.index(third) + 1]
    assert ask(toy, stop_token_ids=(third,)).finish_reason is FinishReason.STOP
    ignoring = ask(toy, ignore_eos=True, max_new_tokens=150)
    assert (ignoring.finish_reason, len(ignoring.token_ids)) == (FinishReason.LENGTH, 150)
    assert ignoring.token_ids[: len(whole.token_ids)] == whole.token_ids


def test_no_end_before_the_minimum_length(toy: Engine) -> None:
    whole = ask(toy)
    longer = ask(toy, min_new_tokens=len(whole.token_ids) + 5, max_new_tokens=200)
    assert len(longer.token_ids) >= len(whole.token_ids) + 5
    assert not set(longer.token_ids[: len(whole.token_ids) + 4]) & set(toy.loaded.limits.eos_token_ids)


@pytest.mark.parametrize("length", [2, 5, 11])
def test_a_stop_string_may_span_tokens(toy: Engine, length: int) -> None:
    whole = ask(toy)
    for start in range(1, len(whole.text) - length, 7):
        stop = whole.text[start : start + length]
        stopped = ask(toy, stop=(stop, "never said"))
        assert stopped.text == whole.text[: whole.text.index(stop)]
        assert stopped.finish_reason is FinishReason.STOP
        assert stopped.token_ids == whole.token_ids[: len(stopped.token_ids)]


def test_beams_stop_at_strings_too(toy: Engine) -> None:
    stopped = ask(toy, strategy=Strategy.BEAM, num_beams=4, stop=(".",))
    assert stopped.finish_reason is FinishReason.STOP
    assert "." not in stopped.text


# Text


@pytest.mark.parametrize("strategy", [Strategy.GREEDY, Strategy.SAMPLE, Strategy.BEAM])
def test_the_text_is_what_the_tokenizer_decodes_and_its_pieces_join_to_it(toy: Engine, strategy: Strategy) -> None:
    extra: dict[str, Any] = {"temperature": 10.0} if strategy is Strategy.SAMPLE else {}
    for seed in range(10):
        done = ask(toy, strategy=strategy, seed=seed, max_new_tokens=200, **extra)
        ends = done.finish_reason is FinishReason.EOS
        answer = done.token_ids[:-1] if ends else done.token_ids
        assert done.text == toy.loaded.tokenizer.decode(answer)
        assert done.trace is not None
        assert len(done.trace.tokens) == len(done.token_ids)
        assert "".join(done.trace.tokens[: len(answer)]) == done.text
        if strategy is not Strategy.SAMPLE:
            return


def test_a_character_of_several_tokens_is_shown_at_its_last(toy: Engine) -> None:
    from worker.engine.detokenizer import Detokenizer

    ids = toy.encode("é 日本 🦔")
    pieces = Detokenizer(toy.loaded.tokenizer).pieces(ids)
    assert "".join(pieces) == "é 日本 🦔"
    assert "🦔" in pieces and "" in pieces
    assert "\ufffd" not in "".join(pieces)


# Room


def test_a_prompt_that_does_not_fit_the_window_fails_alone() -> None:
    engine = random_pair("qwen2").engine()
    params = GenerationParams(max_new_tokens=5)
    requests = [Request(0, (5,) * 20, params), Request(1, (5,) * WINDOW, params), Request(2, (6,) * 30, params)]
    outputs = {output.request_id: output for output in engine.generate(requests)}
    assert isinstance(outputs[1].error, PromptTooLong)
    assert str(WINDOW) in str(outputs[1].error)
    assert [len(outputs[index].completions[0].token_ids) for index in (0, 2)] == [5, 5]


def test_an_answer_ends_where_the_window_does() -> None:
    engine = random_pair("qwen2").engine()
    params = GenerationParams(max_new_tokens=1000, ignore_eos=True)
    (output,) = engine.generate([Request(0, (5,) * (WINDOW - 9), params)])
    (done,) = output.completions
    assert (done.finish_reason, len(done.token_ids)) == (FinishReason.LENGTH, 9)


def test_what_can_never_run_is_refused_with_a_reason() -> None:
    pair = random_pair("qwen2")
    small = pair.engine(kv_memory=0.0001, max_num_seqs=4)
    too_large = refused(small, Request(0, (5,) * 300, GenerationParams(max_new_tokens=200)))
    assert isinstance(too_large, CapacityExceeded) and "--kv-memory" in str(too_large)
    too_wide = refused(small, Request(0, (5,), GenerationParams(strategy=Strategy.BEAM, num_beams=5)))
    assert isinstance(too_wide, CapacityExceeded) and "--max-num-seqs" in str(too_wide)
    assert isinstance(refused(small, Request(0, ())), InvalidRequest)
    unknown = refused(small, Request(0, (5,), GenerationParams(stop_token_ids=(VOCAB,))))
    assert str(unknown) == f"token id {VOCAB} is not in the vocabulary of {VOCAB}"
    assert isinstance(refused(small, Request(0, (5,), GenerationParams(stop=("x",)))), InvalidRequest)


def test_more_sequences_than_fit_wait_and_none_fails() -> None:
    engine = random_pair("qwen2").engine(kv_memory=0.0004, max_num_seqs=64)
    prompts = random_prompts(60, seed=8, longest=50)
    requests = [Request(i, ids, GenerationParams(max_new_tokens=20)) for i, ids in enumerate(prompts)]
    for request in requests:
        engine.submit(request)
    most, outputs = 0, []
    while engine.has_work:
        outputs += engine.step()
        most = max(most, engine.scheduler.blocks.num_in_use)
    assert engine.num_waiting == 0
    assert len(outputs) == 60 and all(output.error is None for output in outputs)
    assert engine.scheduler.blocks.num_usable // 2 < most <= engine.scheduler.blocks.num_usable


def test_a_cache_that_holds_nothing_is_refused_at_the_start() -> None:
    with pytest.raises(CapacityExceeded, match="raise --kv-memory"):
        random_pair("qwen2").engine(kv_memory=1e-9)


STRATEGIES: list[dict[str, Any]] = [
    {"strategy": "greedy"},
    {"strategy": "sample", "n": 3},
    {"strategy": "nucleus", "top_p": 0.7},
    {"strategy": "beam", "num_beams": 4},
    {"strategy": "beam", "num_beams": 2, "max_new_tokens": 1},
]

event = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, len(STRATEGIES) - 1), st.integers(1, 120)),
    st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("step"), st.integers(1, 12), st.just(0)),
)


@settings(max_examples=60)
@given(events=st.lists(event, min_size=5, max_size=40), share=st.booleans(), memory=st.sampled_from([0.0005, 0.01]))
def test_no_schedule_leaks_room(events: list[tuple[str, int, int]], share: bool, memory: float) -> None:
    """Any mix of finished, cancelled and refused requests leaves every block free again."""
    engine = random_pair("qwen2").engine(share_prefixes=share, kv_memory=memory, max_num_seqs=9, prefill_tokens=32)
    rng = random.Random(9)
    submitted: set[int] = set()
    ended: list[int] = []
    for kind, number, length in events:
        if kind == "submit":
            params: dict[str, Any] = {"max_new_tokens": 6, "eos_token_ids": (20, 21), **STRATEGIES[number]}
            prompt_ids = tuple([7] * (length // 2) + rng.choices(range(3, VOCAB), k=length - length // 2))
            request = Request(len(submitted), prompt_ids, GenerationParams.model_validate(params))
            submitted.add(request.id)
            engine.submit(request)
        elif kind == "cancel" and engine.cancel(number):
            ended.append(number)
        elif kind == "step":
            ended += [output.request_id for _ in range(number) for output in engine.step()]
    while engine.has_work:
        ended += [output.request_id for output in engine.step()]
    assert sorted(ended) == sorted(submitted)  # each once
    assert engine.scheduler.blocks.num_in_use == 0
    assert engine.scheduler.blocks.num_available == engine.scheduler.blocks.num_usable


def test_requests_are_told_of_before_anything_of_them_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies of a request has named it then."""
    told: list[int] = []
    launch = Backend.launch

    def checked(self: Backend, plan: StepPlan, previous: InFlight | None = None) -> InFlight:
        sequences = plan.decodes + [chunk.sequence for chunk in plan.prefills]
        assert {sequence.request.id for sequence in sequences} <= set(told)
        return launch(self, plan, previous)

    monkeypatch.setattr(Backend, "launch", checked)
    engine = random_pair("qwen2").engine(max_num_seqs=4)
    for index, ids in enumerate(random_prompts(12, seed=4)):
        engine.submit(Request(index, ids, GenerationParams(max_new_tokens=1 + index)))
    while engine.has_work:
        engine.step(on_admitted=told.extend)
    assert told == list(range(12))


# Loading


def test_an_unknown_model_says_so(tmp_path: Any) -> None:
    with pytest.raises(ModelUnavailable, match="the folder is empty"):
        Engine.load(str(tmp_path))


def test_a_missing_device_says_what_to_do() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(ModelUnavailable, match="no CUDA device; use --device cpu"):
        Engine.load(str(TOY_MODEL), device="cuda:0")


def test_finished_sequences_come_as_they_finish(toy: Engine) -> None:
    def request(index: int, length: int) -> Request:
        return Request(index, (5, 6), GenerationParams(max_new_tokens=length, ignore_eos=True))

    outputs: list[RequestOutput] = list(toy.generate([request(0, 30), request(1, 3), request(2, 10)]))
    assert [output.request_id for output in outputs] == [1, 2, 0]


def test_a_common_prefix_is_computed_once() -> None:
    opening = (7,) * 80  # five blocks
    prompts = [(*opening, 10 + index, 11) for index in range(20)]
    requests = [Request(index, ids, GenerationParams(max_new_tokens=4)) for index, ids in enumerate(prompts)]
    engine = random_pair("qwen2").engine(max_num_seqs=32, block_size=16)
    assert len(list(engine.generate(requests))) == 20
    assert engine.stats.num_prefill_tokens == 80 + 20 * 2
    apart = random_pair("qwen2").engine(max_num_seqs=32, block_size=16, share_prefixes=False)
    assert len(list(apart.generate(requests))) == 20
    assert apart.stats.num_prefill_tokens == 20 * 82


def test_whoever_computes_a_prefix_may_be_cancelled() -> None:
    opening = (7,) * 80
    engine = random_pair("qwen2").engine(max_num_seqs=32, block_size=16, prefill_tokens=16)
    for index in range(3):
        engine.submit(Request(index, (*opening, 10 + index), GenerationParams(max_new_tokens=4)))
    engine.step()
    assert engine.num_waiting == 2
    engine.cancel(0)
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert sorted(output.request_id for output in outputs) == [1, 2]
