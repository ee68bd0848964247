"""Entropy and ranks over all tokens of each setting. The database counts them; a few thousand numbers come back."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from typing import Any

from sqlalchemy import Connection, Engine, Integer, case, cast, func, select

from models.schema.trace import TokenTrace

#: Results whose tokens one statement counts.
RESULTS_PER_STATEMENT = 2_000

#: Steps of a nat in which entropies are counted.
STEPS = 20

#: Positions that a page plots of each setting.
MAX_POINTS = 60


class TokenStatistics:
    """Counts of each setting's tokens, by position and entropy. Results are counted some thousands at a time."""

    def __init__(self, database: Engine) -> None:
        self._database = database
        self._waiting: dict[int, array[int]] = defaultdict(lambda: array("q"))
        self._entropies: dict[int, dict[int, Counter[int]]] = defaultdict(lambda: defaultdict(Counter))
        self._num_tokens: Counter[int] = Counter()
        self._num_first: Counter[int] = Counter()  # tokens of rank 1

    def add(self, setting: int, result_id: int) -> None:
        """Notes a result of a setting."""
        self._waiting[setting].append(result_id)
        if len(self._waiting[setting]) >= RESULTS_PER_STATEMENT:
            self._count(setting)

    def described(self, setting: int) -> dict[str, Any]:
        """The share of tokens of rank 1, and quartiles of the entropy by position."""
        self._count(setting)
        total = self._num_tokens[setting]
        return {
            "tokens": total,
            "rank1": round(self._num_first[setting] / total, 5) if total else None,
            "entropy": _quartiles_by_position(self._entropies[setting]),
        }

    def _count(self, setting: int) -> None:
        if not self._waiting[setting]:
            return
        with self._database.connect() as connection:
            self._add_counts(connection, setting)
        del self._waiting[setting]

    def _add_counts(self, connection: Connection, setting: int) -> None:
        step = cast(TokenTrace.entropy * STEPS, Integer)
        is_first = func.sum(case((TokenTrace.rank == 1, 1), else_=0))
        counted = (
            select(TokenTrace.position, step, func.count(), is_first)
            .where(TokenTrace.result_id.in_(self._waiting[setting].tolist()))
            .group_by(TokenTrace.position, step)
        )
        for position, entropy, count, num_first in connection.execute(counted):
            self._entropies[setting][position][entropy] += count
            self._num_tokens[setting] += count
            self._num_first[setting] += num_first


def _quartiles_by_position(entropies: dict[int, Counter[int]]) -> list[list[float]]:
    """[position, lower quartile, median, upper quartile, tokens] of the positions, or of runs of them where many."""
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
