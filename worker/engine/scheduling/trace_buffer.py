"""The trace of a sequence while it grows: arrays, so that a batch of long answers is not an object for each token."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from worker.engine.choices import COLUMNS, Choice, Choices

_TOKEN = struct.Struct(f"{len(COLUMNS)}d")

#: Bytes of an alternative's id, and of its logprob.
_WORD = 4


class TracedStep:
    """The bytes of a step's choices, of which each sequence takes those of its row."""

    def __init__(self, choices: Choices) -> None:
        ordered = choices.ordered()
        self.columns = np.ascontiguousarray(ordered.columns, np.float64).tobytes()
        self.num_alternatives = ordered.alternative_ids.shape[1]
        self.alternative_ids = ordered.alternative_ids.astype(np.int32).tobytes()
        self.alternative_logprobs = ordered.alternative_logprobs.astype(np.float32).tobytes()


@dataclass(slots=True)
class TraceBuffer:
    """The choices of a sequence's tokens, with as many alternatives for each; impossible ones have -inf."""

    num_alternatives: int
    _columns: bytearray = field(default_factory=bytearray)  # float64 [tokens, len(COLUMNS)]
    _alternative_ids: bytearray = field(default_factory=bytearray)  # int32 [tokens, num_alternatives]
    _alternative_logprobs: bytearray = field(default_factory=bytearray)  # float32, likewise
    beams: list[int] = field(default_factory=list)  # of a beam: where the history of each token came from

    def append_row(self, step: TracedStep, row: int) -> None:
        """Adds the token of a row of a step."""
        self._columns += step.columns[row * _TOKEN.size : (row + 1) * _TOKEN.size]
        if self.num_alternatives:
            count = min(self.num_alternatives, step.num_alternatives)
            words = slice(row * step.num_alternatives * _WORD, (row * step.num_alternatives + count) * _WORD)
            self._append_alternatives(step.alternative_ids[words], step.alternative_logprobs[words])

    def append(self, choice: Choice) -> None:
        self._columns += _TOKEN.pack(*(getattr(choice, name) for name in COLUMNS))
        if self.num_alternatives:
            pairs = choice.alternatives[: self.num_alternatives]
            ids, logprobs = np.array(pairs, np.float64).reshape(-1, 2).T
            self._append_alternatives(ids.astype(np.int32).tobytes(), logprobs.astype(np.float32).tobytes())
        if choice.beam is not None:
            self.beams.append(choice.beam)

    def _append_alternatives(self, ids: bytes, logprobs: bytes) -> None:
        """Adds the alternatives of a token, filled up with impossible ones."""
        if len(ids) == self.num_alternatives * _WORD:
            self._alternative_ids += ids
            self._alternative_logprobs += logprobs
            return
        missing = self.num_alternatives - len(ids) // _WORD
        self._alternative_ids += ids + np.full(missing, -1, np.int32).tobytes()
        self._alternative_logprobs += logprobs + np.full(missing, -np.inf, np.float32).tobytes()

    def copy(self) -> TraceBuffer:
        return TraceBuffer(
            self.num_alternatives,
            bytearray(self._columns),
            bytearray(self._alternative_ids),
            bytearray(self._alternative_logprobs),
            list(self.beams),
        )

    def column(self, name: str) -> NDArray[np.float64]:
        """The values of one of `COLUMNS` [tokens]."""
        return np.frombuffer(self._columns, np.float64).reshape(-1, len(COLUMNS))[:, COLUMNS.index(name)]

    def alternatives(self) -> list[list[tuple[int, float]]]:
        """(token id, raw logprob) pairs of each token, the most probable first."""
        rows = [
            np.frombuffer(data, dtype).reshape(-1, self.num_alternatives).tolist()
            for data, dtype in ((self._alternative_ids, np.int32), (self._alternative_logprobs, np.float32))
        ]
        return [[pair for pair in zip(*both, strict=True) if pair[1] > -np.inf] for both in zip(*rows, strict=True)]
