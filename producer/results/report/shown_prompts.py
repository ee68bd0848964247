"""The prompts that a page of a run shows: the first ones, until they have as many answers as a page holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from producer.results.report.answer_figures import Asked
from producer.results.report.distinct import DistinctCounter
from producer.results.report.figure_rows import FigurePage, decoded
from producer.results.report.measures import prompt_id, text_key

#: Answers of one page, unless all are asked for.
MAX_ANSWERS = 20_000


@dataclass
class ShownPrompt:
    """A prompt of the page: its jobs, and which of its answers are equal."""

    custom_id: str
    asks_for_json: bool
    job_ids: list[int] = field(default_factory=list)
    num_answers: int = 0
    num_tokens: int = 0
    groups: dict[int, int] = field(default_factory=dict)  # a text's key -> number of the group
    cells: Counter[tuple[int, int]] = field(default_factory=Counter)  # (setting, group) -> answers

    def add(self, page: FigurePage, rows: range, setting: int) -> None:
        """Adds the rows of a job."""
        self.job_ids.append(page.job_id[rows[0]])
        for row in rows:
            text = page.text[row]
            if text is not None:
                self.num_answers += 1
                self.num_tokens += page.completion_tokens[row]
                self.cells[setting, self.groups.setdefault(text_key(text), len(self.groups))] += 1


class ShownPrompts:
    """The shown prompts of the jobs so far, which come in their order, and the number of all prompts."""

    def __init__(self, max_prompts: int | None) -> None:
        self._max_prompts = max_prompts
        self._shown: dict[int, ShownPrompt] = {}
        self._unseen = DistinctCounter()  # keys of prompts that are not shown
        self._num_answers = 0  # shown or not

    @property
    def shown(self) -> list[ShownPrompt]:
        """The shown prompts, in the order of their first job."""
        return list(self._shown.values())

    @property
    def num_prompts(self) -> int:
        """All prompts, shown or not."""
        return len(self._shown) + len(self._unseen)

    def add(self, page: FigurePage, job_rows: Sequence[int], asked: Sequence[Asked], settings: Sequence[int]) -> None:
        """Adds the jobs of a page, whose first rows are given; `asked` and `settings` are of each row."""
        for first, end in pairwise((*job_rows, len(page.job_id))):
            if self._max_prompts is not None and self._num_answers >= MAX_ANSWERS:
                break
            key, asks_for_json = asked[first]
            if key not in self._shown and self._has_room():
                name = prompt_id(page.custom_id[first], decoded(page.grid_point[first]))
                self._shown[key] = ShownPrompt(name, asks_for_json)
            if key in self._shown:
                self._shown[key].add(page, range(first, end), settings[first])
            if page.text[first] is not None:
                self._num_answers += end - first
        keys = (asked[first][0] for first in job_rows)
        self._unseen.add([key for key in keys if key not in self._shown])

    def _has_room(self) -> bool:
        return self._max_prompts is None or len(self._shown) < self._max_prompts
