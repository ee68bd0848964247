"""The trace of a growing sequence is the choices that it was made of, whichever way they came."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.choices import COLUMNS, Choice, Choices, order_alternatives
from worker.engine.scheduling.trace_buffer import TraceBuffer, TracedStep

numbers = st.floats(-1e300, 1e300)
logprobs = st.sampled_from([-math.inf, -2.5, -1.5, -0.25])
alternatives = st.lists(st.tuples(st.integers(0, 99), logprobs), max_size=5, unique_by=lambda pair: pair[0])
choices = st.builds(
    Choice, st.integers(0, 2**31 - 1), numbers, numbers, numbers, st.integers(1, 2**31), st.integers(0, 2**31),
    alternatives.map(order_alternatives),
)  # fmt: skip


def described(buffer: TraceBuffer) -> tuple[list[list[float]], list[list[tuple[int, float]]]]:
    return [buffer.column(name).tolist() for name in COLUMNS], buffer.alternatives() if buffer.num_alternatives else []


@given(steps=st.lists(st.lists(choices, min_size=3, max_size=3), max_size=4), width=st.integers(0, 3))
def test_a_trace_has_what_was_sampled(steps: list[list[Choice]], width: int) -> None:
    """Of each of three rows, with as many alternatives as its own job asks for."""
    by_row, one_by_one = [TraceBuffer(width) for _ in range(3)], [TraceBuffer(width) for _ in range(3)]
    for step in steps:
        traced = TracedStep(Choices.stacked(step))
        for row, choice in enumerate(step):
            by_row[row].append_row(traced, row)
            one_by_one[row].append(choice)
    for row in range(3):
        expected = [[getattr(step[row], name) for step in steps] for name in COLUMNS]
        best = [step[row].alternatives[:width] for step in steps] if width else []
        assert described(by_row[row]) == described(one_by_one[row]) == (expected, best)


@given(step=st.lists(choices, min_size=1, max_size=4), width=st.integers(0, 5))
def test_stacked_choices_are_those_of_their_rows(step: list[Choice], width: int) -> None:
    stacked = Choices.stacked(step)
    for row, choice in enumerate(step):
        found = stacked.of_row(row, width)
        assert found.alternatives == choice.alternatives[:width]
        assert [getattr(found, name) for name in COLUMNS] == [getattr(choice, name) for name in COLUMNS]


def test_equal_alternatives_are_ordered_by_id() -> None:
    columns = np.zeros((1, len(COLUMNS)))
    ids, values = np.array([[9, 7, 8, 3]], np.int32), np.array([[-1.0, -1.0, -math.inf, -2.0]], np.float32)
    buffer = TraceBuffer(3)
    buffer.append_row(TracedStep(Choices(columns, ids, values)), 0)
    assert buffer.alternatives() == [[(7, -1.0), (9, -1.0), (3, -2.0)]]


def test_a_fork_goes_on_by_itself() -> None:
    first = TraceBuffer(1)
    first.append(Choice(1, -1.0, -1.0, 0.5, 1, 1, [(1, -1.0)], beam=0))
    second = first.copy()
    second.append(Choice(2, -1.0, -1.0, 0.5, 1, 1, [(2, -1.0)], beam=1))
    assert (first.column("token_id").tolist(), first.beams) == ([1.0], [0])
    assert (second.column("token_id").tolist(), second.beams) == ([1.0, 2.0], [0, 1])
