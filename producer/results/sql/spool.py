"""Rows kept in a temporary file of one's own, so that a slow reader of them holds no transaction."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Self

from producer.errors import UsageError

#: Rows of so many bytes stay in memory.
MEMORY_BYTES = 2**23

Row = tuple[Any, ...]


class Spool:
    """Rows that are written once and then read, any number of times. The file has no name that others could open."""

    def __init__(self) -> None:
        self._file: Any = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115
        self.num_rows = 0

    def extend(self, rows: Iterable[Row]) -> None:
        """Raises `UsageError` where the disk is full."""
        try:
            for row in rows:
                pickle.dump(tuple(row), self._file, pickle.HIGHEST_PROTOCOL)
                self.num_rows += 1
        except OSError as error:
            raise UsageError(
                f"cannot keep the rows in {tempfile.gettempdir()}: {error.strerror}; name another folder in TMPDIR"
            ) from error

    def __iter__(self) -> Iterator[Row]:
        self._file.seek(0)
        for _ in range(self.num_rows):
            yield pickle.load(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # of a disk that is full: said already
            self._file.close()
