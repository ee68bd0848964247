"""Fields of several dtypes in one storage: what the host writes arrives in its place, and nowhere else."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.cuda.row_words import Field, WordUpdates, carve
from worker.engine.cuda.sampling.table import IN_PROMPT, SamplingTable, history_of

CPU = torch.device("cpu")
NUM_ROWS = 4
FIELDS = {
    "counts": Field((NUM_ROWS,), torch.int32),
    "numbers": Field((NUM_ROWS, 3), torch.float64),
    "ranges": Field((NUM_ROWS, 2, 5), torch.int32),
    "ids": Field((NUM_ROWS,), torch.int64),
    "values": Field((NUM_ROWS, 7), torch.float32),
}
WRITES = st.tuples(st.sampled_from(sorted(FIELDS)), st.integers(0, NUM_ROWS - 1), st.integers(0, 9), st.integers(1, 10))


@settings(max_examples=50)
@given(st.lists(WRITES, max_size=12), st.integers(0, 12))
def test_each_value_arrives_in_its_place(writes: list[tuple[str, int, int, int]], sent_after: int) -> None:
    words, fields = carve(FIELDS, CPU)
    expected = {name: torch.zeros(field.shape, dtype=field.dtype) for name, field in FIELDS.items()}
    updates, written = WordUpdates(words), set[tuple[str, int]]()
    for number, (name, row, start, count) in enumerate(writes):
        if number == sent_after:
            updates.send()
            written = set()
        if (name, row) in written:  # once between two sends
            continue
        written.add((name, row))
        of_row = expected[name][row].view(-1)
        values = np.arange(100 * number + 1, 100 * number + 1 + count)[: len(of_row[start:])]
        values = values.astype(of_row.numpy().dtype)
        if not len(values):
            continue
        of_row[start : start + len(values)] = torch.from_numpy(values)
        updates.write(fields[name], row, values, start)
    updates.send()
    updates.send()  # nothing is left
    for name, field in expected.items():
        assert (
            torch.equal(fields[name], field) and fields[name].untyped_storage()._cdata == words.untyped_storage()._cdata
        )


def test_places_of_a_row() -> None:
    table = SamplingTable.make(3, 50, CPU)
    updates = WordUpdates(table.words)
    updates.write_at(table.history, 2, *history_of((4, 4, 9, 60), (9, 9, 7, 50), table.vocab))
    updates.send()
    expected = torch.zeros(50, dtype=torch.int32)
    expected[[4, 9, 7]] = torch.tensor([IN_PROMPT, IN_PROMPT + 2, 1], dtype=torch.int32)
    assert torch.equal(table.history[2], expected) and not table.history[:2].any()
