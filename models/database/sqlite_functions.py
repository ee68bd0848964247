"""Functions that SQLite lacks and a reader of results asks for: median, percentile, standard deviation, is_json.

They mean the same as PostgreSQL's, or as those of SQLite's own percentile extension, which few builds have. NULL counts
as no value; a value that is not a number is an error.
"""

from __future__ import annotations

import math
import sqlite3
from array import array
from functools import cache
from typing import Any

#: The driver replaces an error's own text; only `finalize` raises one of ours.
WRONG_VALUE_ERROR = "user-defined aggregate's 'finalize' method raised error"

#: The error in the words of a person.
WRONG_VALUE = (
    "a value given to median, percentile, stddev or variance is not a number, or the percentile is not one number "
    "from 0 to 100"
)


class NumberAggregate:
    """An aggregate of numbers. Other values are reported at the end, where the error can be told from any other."""

    def __init__(self) -> None:
        self._is_wrong = False

    def step(self, value: Any, *arguments: Any) -> None:
        if not all(isinstance(each, int | float) for each in (value, *arguments) if each is not None):
            self._is_wrong = True
        elif value is not None:
            self.add(float(value), *arguments)

    def finalize(self) -> float | None:
        if self._is_wrong:
            raise ValueError(WRONG_VALUE)
        return self.result()

    def add(self, value: float, *arguments: Any) -> None:
        raise NotImplementedError

    def result(self) -> float | None:
        raise NotImplementedError


class Percentile(NumberAggregate):
    """`percentile(value, p)`: the value below which `p` percent lie, interpolated between neighbors."""

    def __init__(self) -> None:
        super().__init__()
        self._values = array("d")
        self._percent: float | None = None

    def add(self, value: float, *arguments: Any) -> None:
        percent = arguments[0] if arguments else 50
        if percent is None or not 0 <= percent <= 100 or self._percent not in (None, percent):
            self._is_wrong = True
        self._percent = percent
        self._values.append(value)

    def result(self) -> float | None:
        if not self._values:
            return None
        import numpy  # takes longer to load than most statements

        return float(numpy.percentile(numpy.frombuffer(self._values), self._percent or 0))


class Variance(NumberAggregate):
    """`variance(value)`, of a sample, by Welford's method, which loses no digits to a large mean."""

    ddof = 1  # the divisor is the number of values minus this

    def __init__(self) -> None:
        super().__init__()
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def add(self, value: float, *arguments: Any) -> None:  # noqa: ARG002
        self._count += 1
        difference = value - self._mean
        self._mean += difference / self._count
        self._squares += difference * (value - self._mean)

    def result(self) -> float | None:
        divisor = self._count - self.ddof
        return self._squares / divisor if divisor > 0 else None


class Deviation(Variance):
    """`stddev(value)` and `stddev_samp(value)`."""

    def result(self) -> float | None:
        variance = super().result()
        return None if variance is None else math.sqrt(variance)


class PopulationDeviation(Deviation):
    """`stddev_pop(value)`: of a whole population, not of a sample."""

    ddof = 0


#: Name and number of arguments -> class.
AGGREGATES: dict[tuple[str, int], Any] = {
    ("percentile", 2): Percentile,
    ("median", 1): Percentile,
    ("variance", 1): Variance,
    ("stddev", 1): Deviation,
    ("stddev_samp", 1): Deviation,
    ("stddev_pop", 1): PopulationDeviation,
}

#: Functions by name, for the list of those that are allowed.
NAMES = frozenset(name for name, _ in AGGREGATES) | {"is_json"}


def add_functions(connection: sqlite3.Connection) -> None:
    """Gives the connection the functions, in the place of those of the same name that a build may have."""
    for (name, num_arguments), aggregate in AGGREGATES.items():
        connection.create_aggregate(name, num_arguments, aggregate)
    connection.create_function("is_json", 1, _is_json, deterministic=True)


def _is_json(value: Any) -> int | None:
    """The verdict of SQLite's own `json_valid`, which the views use, with NULL for NULL as on PostgreSQL."""
    if value is None or isinstance(value, bytes):
        return None if value is None else 0
    return int(_judge().execute("SELECT json_valid(?)", (value,)).fetchone()[0])


@cache
def _judge() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", check_same_thread=False)
