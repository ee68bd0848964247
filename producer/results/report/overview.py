"""The first pass over a run: figures of all its answers, its settings, its failures, and the prompts a page shows.

A row leaves some numbers behind and nothing of its texts, but for the titles of the prompts that are shown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from models.states import JobState
from producer.results.report.distinct import DistinctCounter
from producer.results.report.facets import Facets
from producer.results.report.figure_rows import decoded, moment_of
from producer.results.report.job_settings import JobSettings
from producer.results.report.measures import asks_for_json, is_json, prompt_id, prompt_key, repetition, text_key
from producer.results.report.summary import Answer, Summary

#: Answers of one page, unless all are asked for.
MAX_ANSWERS = 20_000

#: Causes of failures that are told apart, and the examples of each.
MAX_CAUSES, MAX_EXAMPLES = 100, 5

FAILURES = frozenset({JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})

NUMBER = re.compile(r"\d+")


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


@dataclass
class Cause:
    """Jobs that failed in the same way: their errors differ in numbers alone."""

    state: str
    code: str
    error: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Asked:
    """The prompt or chat of rows: its key, and whether it expects JSON."""

    def __init__(self, prompt: str | None, messages: str | None, chat: str | None) -> None:
        self._texts = (prompt, messages, chat)
        asking = decoded(messages) if prompt is None else prompt
        self.key = prompt_key(prompt, asking, decoded(chat))
        self.asks_for_json = asks_for_json(asking)

    def is_of(self, row: Any) -> bool:
        """Whether a row asks this."""
        prompt, messages, chat = self._texts
        return bool(row.prompt == prompt and row.messages == messages and row.chat == chat)


class Overview:
    """The figures of the rows so far, which come in the order of the jobs."""

    def __init__(self, max_prompts: int | None) -> None:
        self._max_prompts = max_prompts
        self._last_job = -1
        self._prompts: dict[int, ShownPrompt] = {}
        self._unseen = DistinctCounter()  # keys of prompts that are not shown
        self._asked = Asked(None, None, None)  # of the row before: a grid's jobs ask the same
        self.settings = JobSettings()
        self._num_answers = 0
        self.by_setting: dict[int, Summary] = {}
        self.causes: dict[tuple[str, str, str], Cause] = {}
        self.facets = Facets()
        self.environments: set[str] = set()
        self._started: Any = None
        self._finished: Any = None

    def read(self, rows: Iterable[Any]) -> Iterable[tuple[int, int]]:
        """Adds rows of `figure_rows`; yields the setting and the id of each result."""
        for row in rows:
            setting = self.settings.number_of_texts(row.strategy, row.params, row.grid_point)
            if not self._asked.is_of(row):
                self._asked = Asked(row.prompt, row.messages, row.chat)
            if row.job_id != self._last_job:
                self._last_job = row.job_id
                self._add_job(row, setting)
            if row.text is not None:
                self._add_answer(row, setting)
                yield setting, row.result_id

    @property
    def summary(self) -> Summary:
        """The figures of all answers."""
        return Summary.merged(self.by_setting.values())

    @property
    def started_at(self) -> datetime | None:
        """The first claim of one of the jobs."""
        return moment_of(self._started)

    @property
    def finished_at(self) -> datetime | None:
        """The end of the last job."""
        return moment_of(self._finished)

    @property
    def prompts(self) -> list[ShownPrompt]:
        """The shown prompts, in the order of their first job."""
        return list(self._prompts.values())

    @property
    def num_prompts(self) -> int:
        """All prompts, shown or not."""
        return len(self._prompts) + len(self._unseen)

    def _add_job(self, row: Any, setting: int) -> None:
        self._of_setting(setting).jobs[row.state] += 1
        shown = self._shown(row)
        if shown is not None:
            shown.job_ids.append(row.job_id)
        if row.state in FAILURES:
            self._add_failure(row)
        if row.metadata is not None:
            self.facets.add(row.metadata)
        for moment in (row.started_at, row.finished_at):
            if moment is not None:
                if self._started is None or moment < self._started:
                    self._started = moment
                if self._finished is None or moment > self._finished:
                    self._finished = moment

    def _add_answer(self, row: Any, setting: int) -> None:
        length, text = row.completion_tokens, text_key(row.text)
        answer = Answer(
            prompt=self._asked.key,
            text=text,
            length=length,
            logprob=row.cumulative_logprob / length if length else None,
            repetition=repetition(row.text),
            is_json=is_json(row.text) if self._asked.asks_for_json else None,
            finish_reason=row.finish_reason,
        )
        self._num_answers += 1
        self._of_setting(setting).add(answer)
        if row.environment_id is not None:
            self.environments.add(row.environment_id)
        shown = self._prompts.get(answer.prompt)
        if shown is not None and shown.job_ids[-1:] == [row.job_id]:
            shown.num_answers += 1
            shown.num_tokens += length
            shown.cells[setting, shown.groups.setdefault(text, len(shown.groups))] += 1

    def _of_setting(self, setting: int) -> Summary:
        summary = self.by_setting.get(setting)
        if summary is None:
            summary = self.by_setting[setting] = Summary()
        return summary

    def _shown(self, row: Any) -> ShownPrompt | None:
        """The prompt of a row, if the page has room for its job."""
        shown = self._prompts.get(self._asked.key)
        has_bound = self._max_prompts is not None
        is_new_one_too_many = shown is None and len(self._prompts) >= (self._max_prompts or 0)
        if has_bound and (self._num_answers >= MAX_ANSWERS or is_new_one_too_many):
            if shown is None:
                self._unseen.add(self._asked.key)
            return None
        if shown is None:
            shown = ShownPrompt(prompt_id(row.custom_id, decoded(row.grid_point)), self._asked.asks_for_json)
            self._prompts[self._asked.key] = shown
        return shown

    def _add_failure(self, row: Any) -> None:
        code, error = row.error_code or "", row.error or ""
        key = (row.state, code, NUMBER.sub("0", error))
        if key not in self.causes and len(self.causes) >= MAX_CAUSES:
            key, error = (row.state, code, ""), "other errors of this kind"
        cause = self.causes.setdefault(key, Cause(row.state, code, error[:2_000]))
        cause.count += 1
        if len(cause.examples) < MAX_EXAMPLES:
            cause.examples.append(row.custom_id)
