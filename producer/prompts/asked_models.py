"""The models that OpenAI's lines ask for: the run's own model answers, and one warning says for which others."""

from __future__ import annotations

from collections import Counter
from typing import Any

from models.model_name import canonical_model, split_revision

#: Models that the warning names.
MAX_NAMED = 3

MAX_CHARACTERS = 60


class AskedModels:
    """Counts the lines that ask for other models than the run's."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._names = {model, split_revision(model)[0]}
        self._num_lines = 0
        self._counts: Counter[str] = Counter()  # of the first few; a file may name as many as it has lines
        self._has_more = False

    def add(self, asked: Any) -> None:
        """Counts the model of a line; None where it names none."""
        if asked is None or (isinstance(asked, str) and {asked, canonical_model(asked)} & self._names):
            return
        self._num_lines += 1
        name = f"{asked!r:.{MAX_CHARACTERS}}"
        if name in self._counts or len(self._counts) < MAX_NAMED:
            self._counts[name] += 1
        else:
            self._has_more = True

    def warning(self) -> str | None:
        if not self._num_lines:
            return None
        names = ", ".join(name for name, _ in self._counts.most_common()) + (" and others" if self._has_more else "")
        lines = "1 line asks" if self._num_lines == 1 else f"{self._num_lines:,} lines ask"
        return f"{lines} for another model ({names}) in body.model, and {self._model} answers"
