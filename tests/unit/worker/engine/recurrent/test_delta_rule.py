"""The gated delta rule in C and in torch: right, in place, and the same bits in any batch and any pieces."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.worker.engine.recurrent.delta_nets import (
    RUNS,
    SIZES,
    Expected,
    random_net,
    random_pools,
    random_rows,
    run_in_float64,
)
from worker.engine.cpu.kernels import cpu_kernels
from worker.engine.model.recurrent.delta_net import Run, batch_of
from worker.engine.model.recurrent.delta_rule import CHUNK, DeltaNet, DeltaRule, delta_rule_in_torch
from worker.engine.model.step_batch import StateRows

pytestmark = pytest.mark.usefixtures("two_threads")

CPU = torch.device("cpu")
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2.0**-8}


def in_c(dtype: torch.dtype) -> DeltaRule:
    kernels = cpu_kernels(dtype)
    if kernels is None:
        pytest.skip("no C compiler")
    return kernels.delta_rule


@pytest.fixture(params=["torch", "c"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rule(name: str, dtype: torch.dtype) -> DeltaRule:
    return delta_rule_in_torch if name == "torch" else in_c(dtype)


def states_of(*runs: Run) -> StateRows:
    states = batch_of(runs, CPU).states
    assert states is not None
    return states


def check(found: Tensor, expected: Tensor, tolerance: float) -> None:
    largest = expected.abs().max().item()
    assert (found.double() - expected).abs().max().item() <= tolerance * largest  # NaN is no small difference


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_float64(name: str, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    net = random_net(*sizes)
    num_rows = sum(run.num_tokens or 1 for run in RUNS)
    projected = random_rows(net, num_rows + 1, dtype)
    begin = [run.state for run in RUNS if run.begins]
    pools, before = random_pools(net, dtype, begin), random_pools(net, dtype)
    output = rule(name, dtype)(net, projected, states_of(*RUNS), pools)
    assert not output[num_rows].any()  # a row of padding
    start = 0
    for run in RUNS:
        rows = projected[start : (start := start + (run.num_tokens or 1))]
        old = [torch.zeros_like(pool[run.state]) if run.begins else pool[run.state] for pool in before]
        expected: Expected = run_in_float64(net, rows, old[0], old[1])
        check(output[start - len(rows) : start], expected.output, TOLERANCES[dtype])
        assert torch.equal(pools[0][run.state], expected.inputs)
        check(pools[1][run.state], expected.state, TOLERANCES[torch.float32])
    for pool, old_pool in zip(pools, before, strict=True):
        others = [index for index in range(len(pool)) if index not in {run.state for run in RUNS}]
        assert torch.equal(pool[others], old_pool[others])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_c_writes_each_row_of_a_sequence_and_no_other(dtype: torch.dtype) -> None:
    net, kernels = random_net(*SIZES[0]), cpu_kernels(dtype)
    if kernels is None:
        pytest.skip("no C compiler")
    states = states_of(*RUNS)
    num_rows = len(states.sequences.rows)
    output = torch.full((num_rows + 2, net.value_size), float("nan"), dtype=dtype)
    # The rows of a prompt may stand in two parts.
    order = torch.arange(num_rows).roll(5) + 1
    moved = replace(states, sequences=replace(states.sequences, rows=order))
    kernels.delta_rule.write(output, net, random_rows(net, num_rows + 2, dtype), moved, random_pools(net, dtype))
    assert not output[1:-1].isnan().any() and output[[0, -1]].isnan().all()


def alone(net: DeltaNet, rule: DeltaRule, rows: Tensor, *pieces: int) -> tuple[Tensor, ...]:
    """A prompt in pieces and then tokens one by one, without any other sequence; its output, inputs and state."""
    pools = random_pools(net, rows.dtype, [4])
    outputs, start = [], 0
    for piece in pieces:
        runs = (Run(4, piece, begins=not start),) if piece > 1 else (Run(4),)
        padded = torch.cat([rows[start : start + piece], rows[:1]])
        outputs.append(rule(net, padded, states_of(*runs), pools)[:piece])
        start += piece
    return (torch.cat(outputs), *(pool[4] for pool in pools))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("sizes", [SIZES[0], SIZES[2]], ids=str)
def test_neither_batch_nor_pieces_change_a_bit(name: str, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    net, chosen = random_net(*sizes), rule(name, dtype)
    rows = random_rows(net, 2 * CHUNK + 7, dtype, seed=1)
    prompt = 2 * CHUNK + 5
    whole = alone(net, chosen, rows, prompt, 1, 1)
    in_pieces = alone(net, chosen, rows, CHUNK, prompt - CHUNK, 1, 1)
    pools, others = random_pools(net, dtype, [4]), random_rows(net, 40, dtype, seed=2)
    outputs: list[Tensor] = []
    for step in (rows[:CHUNK], rows[CHUNK:prompt], rows[prompt : prompt + 1], rows[prompt + 1 :]):
        own = Run(4) if len(step) == 1 else Run(4, len(step), begins=not outputs)
        runs = (Run(1), own, Run(2, 30, begins=True)) if len(step) == 1 else (Run(1), Run(2, 30, begins=True), own)
        first = 1 if len(step) == 1 else 31
        packed = torch.cat([others[:first], step, others[first:31]])
        outputs.append(chosen(net, packed, states_of(*runs), pools)[first : first + len(step)])
    together = (torch.cat(outputs), *(pool[4] for pool in pools))
    for found in (in_pieces, together):
        assert all(torch.equal(one, other) for one, other in zip(found, whole, strict=True))


def test_in_c_a_prompt_may_end_anywhere() -> None:
    net, chosen = random_net(*SIZES[3]), in_c(torch.float32)
    rows = random_rows(net, 100, torch.float32)
    whole, in_pieces = (alone(net, chosen, rows, *pieces) for pieces in ((100,), (3, 2, 70, 25)))
    assert all(torch.equal(one, other) for one, other in zip(in_pieces, whole, strict=True))


def test_nan_stays_in_its_sequence(name: str) -> None:
    net = random_net(*SIZES[0])
    rows = random_rows(net, 3, torch.float32)
    rows[0, net.key_size] = float("nan")  # of a key
    pools = random_pools(net, torch.float32)
    output = rule(name, torch.float32)(net, rows, states_of(Run(0), Run(1)), pools)
    assert output[0].isnan().any() and pools[1][0].isnan().any()
    assert not output[1].isnan().any() and not pools[1][1].isnan().any()
