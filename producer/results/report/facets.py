"""The facets of a page: keys of metadata that have few values. Knows no database."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from producer.results.report.figure_rows import decoded
from producer.results.report.page import MAX_WHOLE

MAX_FACETS, MAX_VALUES = 12, 24

#: Characters of a value, and keys within keys.
MAX_LENGTH, MAX_DEPTH = 60, 4

#: Texts of metadata that are counted apart before they are looked into.
MAX_TEXTS = 10_000


class Facets:
    """Counts the jobs of each value, by a dotted key."""

    def __init__(self) -> None:
        self._texts: Counter[str] = Counter()
        self._facets: dict[str, Counter[str]] = {}  # a value as JSON -> jobs

    def add(self, metadata: Iterable[str]) -> None:
        """Adds the metadata of some jobs, as JSON."""
        self._texts.update(metadata)
        if len(self._texts) >= MAX_TEXTS:
            self._count()

    def described(self) -> dict[str, list[tuple[Any, int]]]:
        """Key -> each value with its jobs."""
        self._count()
        found = {name: values for name, values in self._facets.items() if len(values) <= MAX_VALUES}
        return {name: [(json.loads(value), count) for value, count in values.items()] for name, values in found.items()}

    def _count(self) -> None:
        for text, count in self._texts.items():
            for name, value in _values(decoded(text), "", MAX_DEPTH):
                if name in self._facets or len(self._facets) < MAX_FACETS:
                    values = self._facets.setdefault(name, Counter())
                    if value in values or len(values) <= MAX_VALUES:
                        values[value] += count
        self._texts.clear()


def _values(metadata: Any, prefix: str, depth: int) -> Iterator[tuple[str, str]]:
    """The dotted keys of metadata with their short values, as JSON."""
    if not isinstance(metadata, dict) or not depth:
        return
    for name, value in metadata.items():
        if isinstance(value, dict):
            yield from _values(value, f"{prefix}{name}.", depth - 1)
        elif isinstance(value, str | int | float) and len(str(value)) <= MAX_LENGTH:
            is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= MAX_WHOLE
            yield f"{prefix}{name}", json.dumps(int(value) if is_whole else value)  # 1.0 is 1 for the page's program
