"""The sampler on a pretend CUDA device: who is sampled there, who by the host, and who waits for what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support.pretend_cuda.activity import Activity
from tests.support.pretend_cuda.engines import (
    KINDS,
    answers,
    device_with_kernels,
    engine_of,
    mixed_requests,
    model_on,
    tokens_of,
)
from tests.support.pretend_cuda.kernels import ReferenceSampler
from tests.support.pretend_cuda.machine import Machine
from tests.support.random_models import random_pair
from worker.engine.cuda.sampling import sampler
from worker.engine.cuda.sampling.output import Column, SamplerOutput
from worker.engine.engine import Engine
from worker.engine.request import Request

PLAIN: list[dict[str, Any]] = [
    {},
    {"strategy": "sample"},
    {"trace": "none"},
    {"strategy": "sample", "temperature": 2.0},
    {"strategy": "nucleus", "top_p": 0.8},
    {"strategy": "sample", "top_k": 7, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2},
    {"presence_penalty": 0.5, "logit_bias": {30: 2.0}, "min_new_tokens": 4},
    {"strategy": "sample", "n": 2},
]

#: Rules that the host samples by: the table has no order of tokens, and not so many edits.
RARE: list[dict[str, Any]] = [
    {"model_defaults": {"no_repeat_ngram_size": 2}},
    {"strategy": "sample", "logit_bias": {token_id: 0.01 * token_id for token_id in range(140)}},
]

#: Modules in which a step waits for rows that the host samples.
OF_HOST = {"row_sampler.py", "beam_scores.py", "logits_processors.py", "in_flight.py"}


def steady_state(machine: Machine, kinds: list[dict[str, Any]], num_steps: int) -> Activity:
    """The device's activity in steps that only decode, and in which nobody comes or goes."""
    kinds = [{**each, "ignore_eos": True, "max_new_tokens": 40} for each in kinds]
    requests = [replace(each, prompt_ids=each.prompt_ids[:5]) for each in mixed_requests(8, kinds)]
    engine = engine_of(model_on("cuda:0", "qwen2"), share_prefixes=False)
    for request in requests:
        engine.submit(request)
    for _ in range(4):
        engine.step()
    machine.activity.clear()
    for _ in range(num_steps):
        engine.step()
    return machine.activity


def test_a_plain_step_is_one_launch_and_one_copy_each_way() -> None:
    """And waits for nothing. The host sends blocks and rows that are new, so that most steps send nothing."""
    with device_with_kernels() as machine:
        num_steps = 20
        activity = steady_state(machine, PLAIN, num_steps)
        assert activity.waits == []
        assert activity.graph_launches == activity.copies_to_host == num_steps
        num_sent = activity.copies_to_device
        assert activity.kernels == {"index_copy_": num_sent} and 0 < num_sent <= num_steps // 2


def test_decoding_rows_are_replayed_beside_a_prompt() -> None:
    """One graph, then the prompt's own launches and not one more, and a copy back for each of both; no wait."""
    kinds: list[dict[str, Any]] = [
        {"ignore_eos": True, "max_new_tokens": 40},
        {"strategy": "sample", "ignore_eos": True},
    ]
    requests = mixed_requests(12, kinds)
    expected = answers(engine_of(random_pair("qwen2").loaded), requests)
    with device_with_kernels() as machine:
        engine, outputs = engine_of(model_on("cuda:0", "qwen2"), share_prefixes=False), []
        of_prompt = None
        for request in requests:
            engine.submit(request)
            machine.activity.clear()
            outputs += engine.step()
            activity = machine.activity
            assert activity.waits == []
            kernels = {name: count for name, count in activity.kernels.items() if name != "index_copy_"}
            of_prompt = of_prompt or kernels
            is_mixed = request is not requests[0]
            assert kernels == of_prompt
            assert (activity.graph_launches, activity.copies_to_host) == ((1, 2) if is_mixed else (0, 1))
        while engine.has_work:
            outputs += engine.step()
    assert tokens_of(outputs) == expected


def test_prompts_of_every_kind_come_beside_a_replayed_step() -> None:
    """Among them beams and rows of the host, on both sides; and prompts in pieces, divided anywhere."""
    requests = mixed_requests(24, [*KINDS, *RARE])
    expected = answers(engine_of(random_pair("qwen2").loaded), requests)
    with device_with_kernels():
        engine, outputs, borders = engine_of(model_on("cuda:0", "qwen2"), prefill_tokens=24), [], set()
        for request in requests:
            engine.submit(request)
            outputs += engine.step()
            borders |= {group.sequences[0].num_computed for group in engine.scheduler.running}
        while engine.has_work:
            outputs += engine.step()
    assert tokens_of(outputs) == expected
    assert any(border % 16 for border in borders)


def test_prompts_begin_in_groups_beside_rows_that_decode() -> None:
    """A sixteenth of the rows together, or after 32 steps; all at once where nothing decodes."""
    requests = mixed_requests(24, [{"ignore_eos": True, "max_new_tokens": 30}, {"strategy": "sample", "n": 2}])
    expected = answers(engine_of(random_pair("qwen2").loaded), requests)
    with device_with_kernels():
        engine, outputs, begun = engine_of(model_on("cuda:0", "qwen2"), max_num_seqs=64, kv_memory=0.05), [], []
        for request in requests:
            engine.submit(request)
            outputs += engine.step(lambda ids: begun.append(len(ids)))
        while engine.has_work:
            outputs += engine.step(lambda ids: begun.append(len(ids)))
    assert tokens_of(outputs) == expected
    assert begun[0] == 1 and set(begun[1:-1]) <= {2, 3, 4} and sum(begun) == len(requests)


def test_alternatives_are_one_launch_more() -> None:
    with device_with_kernels() as machine:
        activity = steady_state(machine, [{}, {"top_logprobs": 3}], 6)
        assert activity.waits == [] and activity.copies_to_host == 2 * 6
        assert activity.kernels["find alternatives"] == 6 and set(activity.kernels) <= {
            "find alternatives", "zeros", "index_copy_"
        }  # fmt: skip


def test_rows_of_the_host_make_no_other_row_wait() -> None:
    """Beside beams and rare rules all other rows are still sampled by the device, and their tokens come later."""
    with device_with_kernels() as machine:
        activity = steady_state(machine, [*PLAIN[:4], RARE[0], {"strategy": "beam", "num_beams": 2}], 6)
        assert activity.graph_launches == 6
        places = {wait.split(" at ")[1].split(":")[0] for wait in activity.waits}
        assert places and places <= OF_HOST


@pytest.mark.parametrize("problem", ["uncompiled", "wrong", "nan"])
def test_a_sampler_that_does_not_work_is_replaced_and_told_of(
    problem: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(ReferenceSampler):
        def __call__(self, *arguments: Any, **options: Any) -> None:
            if problem == "uncompiled":
                raise RuntimeError("Failed to find C compiler")
            super().__call__(*arguments, **options)
            output: SamplerOutput = arguments[3]
            column = Column.KEPT if problem == "wrong" else Column.LOGPROB
            output.packed[1, column] = torch.tensor(torch.nan).view(torch.int32).item()

    requests = mixed_requests(10)
    with device_with_kernels():
        monkeypatch.setattr(sampler, "TritonSampler", Broken)
        loaded = model_on("cuda:0", "qwen2")
        assert loaded.model.logits is None
        assert answers(engine_of(loaded), requests) == answers(engine_of(random_pair("qwen2").loaded), requests)
    told = {"uncompiled": "Failed to find C compiler", "wrong": "differ from torch's: kept", "nan": "numbers by nan"}
    assert "tokens are sampled by torch's operations, several times slower" in caplog.text
    assert told[problem] in caplog.text


def test_traces_are_the_cpus() -> None:
    """Of every strategy and rule, with alternatives; rows that the host samples among them."""
    kinds = [{**each, "top_logprobs": 3} for each in (*KINDS, *RARE) if each.get("trace") != "none"]
    requests = mixed_requests(len(kinds), kinds)
    expected = traces_of(engine_of(random_pair("qwen2").loaded), requests)
    with device_with_kernels():
        found = traces_of(engine_of(model_on("cuda:0", "qwen2")), requests)
    assert found.keys() == expected.keys()
    for key, (exact, rounded) in found.items():
        assert exact == expected[key][0]
        assert rounded == pytest.approx(expected[key][1], abs=1e-4)


def traces_of(engine: Engine, requests: list[Request]) -> dict[tuple[int, int], tuple[Any, list[float]]]:
    """Of each sample, what must be the same and what may be rounded otherwise."""
    found = {}
    for output in engine.generate(requests):
        for index, done in enumerate(output.completions):
            trace = done.trace
            assert trace is not None and trace.top_logprobs is not None
            alternatives = [[each["token_id"] for each in row] for row in trace.top_logprobs]
            exact = (done.token_ids, done.finish_reason, trace.ranks, trace.kept, trace.beams, alternatives)
            numbers = [*trace.logprobs, *trace.sampling_logprobs, *trace.entropies]
            numbers += [each["logprob"] for row in trace.top_logprobs for each in row]
            found[output.request_id, index] = (exact, numbers)
    return found
