"""The gated delta rule in Triton's interpreter: close to float64, in place, the same bits in any batch and pieces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.worker.engine.recurrent.delta_nets import (
    NUM_STATES,
    SIZES,
    random_net,
    random_pools,
    random_rows,
    run_in_float64,
)
from worker.engine.cuda.kernels.delta_rule import delta_rule
from worker.engine.model.recurrent.delta_net import Run, batch_of
from worker.engine.model.step_batch import StateRows

CPU = torch.device("cpu")

#: The interpreter cuts bf16 off instead of rounding it.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2.0**-7}
RUNS = (Run(3), Run(0, 1, begins=True), Run(5, 3, begins=True), Run(2, 4))

#: Of a head that fills no vector, in fp32; the interpreter takes its time over the others.
CASES = [
    pytest.param(sizes, dtype, marks=[] if (sizes, dtype) == (SIZES[1], torch.float32) else pytest.mark.long)
    for sizes in (SIZES[0], SIZES[1], SIZES[3])
    for dtype in TOLERANCES
]


def states_of(*runs: Run) -> StateRows:
    states = batch_of(runs, CPU).states
    assert states is not None
    return states


def check(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert (found.double() - expected).abs().max().item() <= tolerance * expected.abs().max().item()


@pytest.mark.parametrize(("sizes", "dtype"), CASES, ids=str)
def test_against_float64(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    net = random_net(*sizes)
    num_rows = sum(run.num_tokens or 1 for run in RUNS)
    projected = random_rows(net, num_rows + 1, dtype)
    begin = [run.state for run in RUNS if run.begins]
    pools, before = random_pools(net, dtype, begin), random_pools(net, dtype)
    output = delta_rule(net, projected, states_of(*RUNS), pools)
    assert not output[num_rows].any()  # a row of padding
    start = 0
    for run in RUNS:
        rows = projected[start : (start := start + (run.num_tokens or 1))]
        old = [torch.zeros_like(pool[run.state]) if run.begins else pool[run.state] for pool in before]
        expected = run_in_float64(net, rows, old[0], old[1])
        check(output[start - len(rows) : start], expected.output, TOLERANCES[dtype])
        assert torch.equal(pools[0][run.state], expected.inputs)
        check(pools[1][run.state], expected.state, TOLERANCES[torch.float32])
    others = [index for index in range(NUM_STATES) if index not in {run.state for run in RUNS}]
    assert all(torch.equal(pool[others], old[others]) for pool, old in zip(pools, before, strict=True))


def decoded(rows: Tensor, net: Any, steps: list[list[Run]]) -> tuple[Tensor, Tensor]:
    """The last row's output of sequence 4 and its state, after steps whose other sequences have rows of their own."""
    pools, others = random_pools(net, rows.dtype, [4]), random_rows(net, 9, rows.dtype, seed=3)
    output, start = rows[:0], 0
    for runs in steps:
        packed: list[Tensor] = []
        own = 0
        for run in runs:
            count = run.num_tokens or 1
            own = sum(len(each) for each in packed) + count if run.state == 4 else own
            packed.append(rows[start : start + count] if run.state == 4 else others[:count])
            start += count if run.state == 4 else 0
        output = delta_rule(net, torch.cat(packed), states_of(*runs), pools)[own - 1]
    return output, pools[1][4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.long)], ids=str)
def test_neither_batch_nor_pieces_change_a_bit(dtype: torch.dtype) -> None:
    net = random_net(*SIZES[1])
    rows = random_rows(net, 5, dtype)
    alone = decoded(rows, net, [[Run(4, 4, begins=True)], [Run(4)]])
    in_pieces = decoded(rows, net, [[Run(4, 1, begins=True)], [Run(4, 3)], [Run(4)]])
    together = decoded(rows, net, [[Run(1), Run(4, 4, begins=True)], [Run(0), Run(4), Run(2, 2, begins=True)]])
    for found in (in_pieces, together):
        assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))
