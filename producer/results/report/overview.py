"""The first pass over a run: figures of all its answers, its settings, its failures, and the prompts a page shows.

A row leaves some numbers behind and nothing of its texts, but for the titles of the prompts that are shown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import compress
from typing import Any

import numpy

from models.states import JobState
from producer.results.report.answer_figures import Asked, each_once, measured
from producer.results.report.facets import Facets
from producer.results.report.figure_rows import FigurePage, decoded, job_begins, moment_of
from producer.results.report.job_settings import JobSettings
from producer.results.report.measures import asks_for_json, prompt_key, text_key
from producer.results.report.shown_prompts import ShownPrompts
from producer.results.report.summary import Summary

#: Causes of failures that are told apart, and the examples of each.
MAX_CAUSES, MAX_EXAMPLES = 100, 5

FAILURES = frozenset({JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})

NUMBER = re.compile(r"\d+")


@dataclass
class Cause:
    """Jobs that failed in the same way: their errors differ in numbers alone."""

    state: str
    code: str
    error: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Overview:
    """The figures of the rows so far, which come in the order of the jobs."""

    def __init__(self, max_prompts: int | None) -> None:
        self.prompts = ShownPrompts(max_prompts)
        self.settings = JobSettings()
        self.by_setting: dict[int, Summary] = {}
        self.causes: dict[tuple[str, str, str], Cause] = {}
        self.facets = Facets()
        self.environments: set[str] = set()
        self._started: Any = None
        self._finished: Any = None

    def read(self, pages: Iterable[FigurePage]) -> Iterator[tuple[int, list[int]]]:
        """Adds pages of rows; yields each setting of a page with the ids of its results."""
        for page in pages:
            settings = each_once(self._setting_of, [*zip(page.strategy, page.params, page.grid_point, strict=True)])
            asked = each_once(_asked, [*zip(page.prompt, page.messages, page.chat, strict=True)])
            job_rows = job_begins(page.job_id)
            self._add_jobs(page, job_rows, settings)
            self.prompts.add(page, job_rows, asked, settings)
            self.environments.update(each for each in set(page.environment_id) if each is not None)
            yield from self._add_answers(page, asked, settings)

    @cached_property
    def summary(self) -> Summary:
        """The figures of all answers, once all pages are read."""
        return Summary.merged(self.by_setting.values())

    @property
    def started_at(self) -> datetime | None:
        """The first claim of one of the jobs."""
        return moment_of(self._started)

    @property
    def finished_at(self) -> datetime | None:
        """The end of the last job."""
        return moment_of(self._finished)

    def _setting_of(self, texts: tuple[str, str, str | None]) -> int:
        return self.settings.number_of_texts(*texts)

    def _add_jobs(self, page: FigurePage, job_rows: Sequence[int], settings: Sequence[int]) -> None:
        for (setting, state), count in Counter((settings[row], page.state[row]) for row in job_rows).items():
            self._of_setting(setting).jobs[state] += count
        for row in job_rows:
            if page.state[row] in FAILURES:
                self._add_failure(page, row)
        self.facets.add(metadata for metadata in map(page.metadata.__getitem__, job_rows) if metadata is not None)
        moments = {*page.started_at, *page.finished_at, self._started, self._finished} - {None}
        self._started, self._finished = min(moments, default=None), max(moments, default=None)

    def _add_answers(
        self, page: FigurePage, asked: Sequence[Asked], settings: Sequence[int]
    ) -> Iterator[tuple[int, list[int]]]:
        columns: tuple[Sequence[Any], ...] = (
            asked, page.text, page.completion_tokens, page.cumulative_logprob, page.finish_reason, page.result_id,
            settings,
        )  # fmt: skip
        has_text = [text is not None for text in page.text]
        *figures, result_ids, numbers = (list(compress(column, has_text)) for column in columns)
        answers, ids, of_rows = measured(*figures), numpy.array(result_ids), numpy.array(numbers)
        for setting in set(numbers):
            of_setting = of_rows == setting
            self._of_setting(setting).add(answers.where(of_setting))
            yield setting, ids[of_setting].tolist()

    def _of_setting(self, setting: int) -> Summary:
        summary = self.by_setting.get(setting)
        if summary is None:
            summary = self.by_setting[setting] = Summary()
        return summary

    def _add_failure(self, page: FigurePage, row: int) -> None:
        state, code, error = page.state[row], page.error_code[row] or "", page.error[row] or ""
        key = (state, code, NUMBER.sub("0", error))
        if key not in self.causes and len(self.causes) >= MAX_CAUSES:
            key, error = (state, code, ""), "other errors of this kind"
        cause = self.causes.setdefault(key, Cause(state, code, error[:2_000]))
        cause.count += 1
        if len(cause.examples) < MAX_EXAMPLES:
            cause.examples.append(page.custom_id[row])


def _asked(texts: tuple[str | None, str | None, str | None]) -> Asked:
    """The key of a prompt, or of a chat's messages and inputs, and whether it speaks of JSON."""
    prompt, messages, chat = texts
    if prompt is not None:
        return text_key(prompt), asks_for_json(prompt)
    asking = decoded(messages)
    return prompt_key(None, asking, decoded(chat)), asks_for_json(asking)
