"""Entropy and ranks over all tokens of each setting. The database counts them; a few thousand numbers come back."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sqlalchemy import Engine

from producer.results.report.tokens.counts import NO_STEP, STEPS, token_counts

#: Results whose tokens one statement counts.
RESULTS_PER_STATEMENT = 2_000

#: Statements that may wait for the thread.
MAX_STATEMENTS = 8

#: Tokens that a server counts of a run; of one with more it takes each setting's every second answer, every third …
MAX_COUNTED = 1_000_000

#: Positions that a page plots of each setting.
MAX_POINTS = 60


def stride_of(num_tokens: int) -> int:
    """The stride by which a server takes the answers of a run of so many tokens; 1 for all."""
    return max(1, -(-num_tokens // MAX_COUNTED))


class TokenStatistics:
    """Counts of each setting's tokens, by position and entropy, of every `stride`-th answer.

    Results are counted some thousands at a time by a thread of its own, beside whoever reads the run.
    """

    def __init__(self, database: Engine, stride: int = 1) -> None:
        self._database = database
        self.stride = stride
        self._num_results: Counter[int] = Counter()  # of each setting, counted or not
        self._thread = ThreadPoolExecutor(1, "token statistics")
        self._counting: deque[Future[None]] = deque()
        self._waiting: dict[int, array[int]] = defaultdict(lambda: array("q"))
        self._entropies: dict[int, dict[int, Counter[int]]] = defaultdict(lambda: defaultdict(Counter))
        self._num_tokens: Counter[int] = Counter()
        self._num_first: Counter[int] = Counter()  # tokens of rank 1

    def add(self, setting: int, result_ids: list[int]) -> None:
        """Notes results of a setting."""
        waiting = self._waiting[setting]
        waiting.extend(result_ids[-self._num_results[setting] % self.stride :: self.stride])
        self._num_results[setting] += len(result_ids)
        while len(waiting) >= RESULTS_PER_STATEMENT:
            self._count(setting, waiting[:RESULTS_PER_STATEMENT])
            del waiting[:RESULTS_PER_STATEMENT]

    def finish(self) -> None:
        """Returns when all results are counted."""
        while self._waiting:
            self._count(*self._waiting.popitem())
        while self._counting:
            self._counting.popleft().result()
        self._thread.shutdown()

    def described(self, setting: int) -> dict[str, Any]:
        """The share of tokens of rank 1, and quartiles of the entropy by position."""
        total = self._num_tokens[setting]
        return {
            "tokens": total,
            "rank1": round(self._num_first[setting] / total, 5) if total else None,
            "entropy": _quartiles_by_position(self._entropies[setting]),
        }

    def _count(self, setting: int, result_ids: array[int]) -> None:
        if len(self._counting) >= MAX_STATEMENTS:
            self._counting.popleft().result()
        self._counting.append(self._thread.submit(self._add_counts, setting, result_ids.tolist()))

    def _add_counts(self, setting: int, result_ids: list[int]) -> None:
        for position, step, count, num_first in token_counts(self._database, result_ids):
            if step != NO_STEP:
                self._entropies[setting][position][step] += count
            self._num_tokens[setting] += count
            self._num_first[setting] += num_first


def _quartiles_by_position(entropies: dict[int, Counter[int]]) -> list[list[float]]:
    """[position, lower quartile, median, upper quartile, tokens] of positions, or of stretches of them where many."""
    width = max(1, -(-len(entropies) // MAX_POINTS))
    merged: dict[int, Counter[int]] = defaultdict(Counter)
    for position, counts in entropies.items():
        merged[position // width * width].update(counts)
    return [[position, *_quartiles(counts), counts.total()] for position, counts in sorted(merged.items())]


def _quartiles(counts: Counter[int]) -> list[float]:
    total, found, seen = counts.total(), [], 0
    wanted = [total * part / 4 for part in (1, 2, 3)]
    for step, count in sorted(counts.items()):
        seen += count
        while wanted and seen >= wanted[0]:
            wanted.pop(0)
            found.append((step + 0.5) / STEPS if step else 0.0)
    return found
