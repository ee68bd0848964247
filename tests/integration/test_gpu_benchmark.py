"""The five parts of `benchmarks.gpu` on a CPU, tiny: what a lent GPU runs first must not fail for a trifle."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any

import pytest
import torch

from benchmarks.gpu import kernels, peers, tokens, wheels
from benchmarks.gpu.__main__ import PARTS, main
from benchmarks.gpu.limited import run_limited
from benchmarks.gpu.setting import Setting
from benchmarks.throughput import Transformers
from tests.conftest import ROOT
from worker.engine.model.attention import AttentionLayer

TOLD = {
    "kernels": [r"attention, float32, 14/2 heads of 64, window 24 .* right", r"matmul head .* bound",
                r"sampler, greedy, no trace .* 2 rows other token_id 0, kept 0, rank 0; .* right"],
    "tokens": [r"toy model, greedy, float32: 0 of 8 answers differ"],
    "profile": [r"greedy: [\d.]+ ms a step", r"operations on the host, none on a device"],
    "whole": [r"6 requests, \d+ tokens, at most 4 running", r"nucleus 0.9 .* x the time of greedy",
              r"prompts in groups of  1: [\d,]+ tokens/s",
              r"deterministic True, 64 running, shuffled.* 0 sequences, 0 logprobs right"],
    "peers": [r"ours .* ours is 1.00 x as fast", r"nano_vllm +is not installed"],
}  # fmt: skip


def tiny_setting(**options: Any) -> Setting:
    return Setting(torch.device("cpu"), "qwen2-0.5b", [2], 2, 8, is_tiny=True, **options)


def test_every_part_is_tried() -> None:
    assert set(TOLD) == set(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_runs_on_a_cpu(part: str, capfd: pytest.CaptureFixture[str]) -> None:
    in_time = ["--seconds", "500", "--peer-seconds", "500"]  # on a busy machine too
    assert main([part, "--device", "cpu", "--tiny", "--peers", "nano_vllm", *in_time]) == 0
    told = capfd.readouterr().out
    for wanted in TOLD[part]:
        assert re.search(wanted, told), f"{wanted!r} is not in:\n{told}"
    assert "WRONG" not in told


def test_a_kernel_that_is_wrong_or_writes_nothing_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    class Lazy:
        def __call__(self, _: AttentionLayer, query: torch.Tensor, *__: Any) -> torch.Tensor:
            return query.new_empty(query.shape)

    setting = tiny_setting()
    with kernels.poisoned_outputs():
        kernels.check_attention(setting, Lazy(), torch.bfloat16, (4, 2, 32))
    assert "error nan WRONG" in capfd.readouterr().out and len(setting.failed) == 2


def test_a_departure_is_placed(capfd: pytest.CaptureFixture[str]) -> None:
    tokens.compare("float32", {"a": [1, 2, 3], "b": [1]}, {"a": [1, 9, 3], "b": [1]})
    assert capfd.readouterr().out.splitlines() == [
        "toy model, greedy, float32: 1 of 2 answers differ from the CPU's", "  'a' departs at 1",
    ]  # fmt: skip


@pytest.mark.long
def test_a_peer_beside_ours(capfd: pytest.CaptureFixture[str]) -> None:
    main(["peers", "--device", "cpu", "--tiny", "--peers", "static"])
    assert re.search(r"static .* tokens/s   ours is .* x as fast; attention sdpa", capfd.readouterr().out)


def test_a_peer_that_fails_or_is_late_is_named() -> None:
    late = tiny_setting(peer_seconds=0.01)
    assert peers.run(late, "static", 2).told == "did not end within 0.01 s"
    assert peers.run(late, "other", 2).told.startswith("is none of ours, continuous")


def test_a_case_that_fails_is_named_and_the_next_one_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    done: list[int] = []
    setting = tiny_setting()
    setting.attempt("first", fail)
    setting.attempt("second", lambda: done.append(2))
    assert done == [2] and len(setting.failed) == 1
    assert "first: FAILED, RuntimeError: CUDA error: an illegal memory access was encountered (" in setting.failed[0]
    late = tiny_setting(budget_seconds=0.0)
    late.attempt("third", lambda: done.append(3))
    assert done == [2] and not late.failed
    assert "third: left out, the part has taken 0 s" in capfd.readouterr().out
    assert peers.run(late, "static", 2).told == "left out, the part has taken 0 s"


def test_a_late_command_is_ended_with_its_children() -> None:
    """A child that holds its output open makes nobody wait."""
    child = "import time; time.sleep(600)"
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"]
    started = time.monotonic()
    assert run_limited(command, 0.5).status is None
    assert time.monotonic() - started < 300
    ended = run_limited([sys.executable, "-c", "import sys; print('out'); sys.exit('why')"], 300)
    assert (ended.status, ended.stdout, ended.last_line) == (1, "out\n", "why")


def test_a_peer_whose_thread_has_died_is_no_endless_loop() -> None:
    class Manager:
        def __enter__(self) -> Manager:
            return self

        def __exit__(self, *error: object) -> None: ...

        def add_request(self, *given: Any, **named: Any) -> None: ...

        def get_result(self, **_: Any) -> None:
            return None

    class Model:
        def continuous_batching_context_manager(self, **_: Any) -> Manager:
            return Manager()

    peer = Transformers(Model(), 4)
    peer.requests = Setting(torch.device("cpu"), "qwen2-0.5b", [2], 2, 8).requests(2)
    with pytest.raises(RuntimeError, match="gave no result"):
        peer.continuous()


@pytest.mark.parametrize("python_version", ["3.11", "3.12", "3.14"])
def test_the_wheels_are_all_that_the_engine_imports_as_it_is_pinned(python_version: str) -> None:
    """Its modules are in this process, beside those of the tests."""
    names = wheels.packages(python_version)
    assert {"transformers", "tokenizers", "pydantic-core", "huggingface-hub", "httpcore2", "psutil", "h11"} <= names
    pinned = wheels.pins((ROOT / "constraints.txt").read_text(), names)
    assert len(pinned) == len(names) and not names & wheels.LEFT_OUT


def test_the_stored_tokens_are_of_every_prompt() -> None:
    stored = json.loads(tokens.STORED.read_text())
    assert {name: len(answers) for name, answers in stored.items()} == {"float32": 64, "bfloat16": 64}
