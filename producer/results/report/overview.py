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
from producer.results.report.job_settings import JobSettings
from producer.results.report.measures import asked, asks_for_json, is_json, prompt_id, prompt_key, repetition, text_key
from producer.results.report.summary import Answer, Summary

#: Answers of one page, unless all are asked for.
MAX_ANSWERS = 20_000

#: Causes of failures that are told apart, and the examples of each.
MAX_CAUSES, MAX_EXAMPLES = 100, 5

#: Metadata keys that are facets have few values.
MAX_FACETS, MAX_FACET_VALUES = 12, 24

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


class Overview:
    """The figures of the rows so far, which come in the order of the jobs."""

    def __init__(self, max_prompts: int | None) -> None:
        self._max_prompts = max_prompts
        self._last_job = -1
        self._prompts: dict[int, ShownPrompt] = {}
        self._unseen: set[int] = set()  # keys of prompts that are not shown
        self.settings = JobSettings()
        self.summary = Summary()
        self.by_setting: dict[int, Summary] = {}
        self.causes: dict[tuple[str, str, str], Cause] = {}
        self.facets: dict[str, Counter[str]] = {}
        self.started_at: datetime | None = None
        self.finished_at: datetime | None = None

    def read(self, rows: Iterable[dict[str, Any]]) -> Iterable[tuple[int, int]]:
        """Adds rows of `job_results`; yields the setting and the id of each result."""
        for row in rows:
            setting = self.settings.number_of(row)
            if row["job_id"] != self._last_job:
                self._last_job = row["job_id"]
                self._add_job(row, setting)
            if row["text"] is not None:
                self._add_answer(row, setting)
                yield setting, row["result_id"]

    @property
    def prompts(self) -> list[ShownPrompt]:
        """The shown prompts, in the order of their first job."""
        return list(self._prompts.values())

    @property
    def num_prompts(self) -> int:
        """All prompts, shown or not."""
        return len(self._prompts) + len(self._unseen)

    def _add_job(self, row: dict[str, Any], setting: int) -> None:
        for summary in (self.summary, self._of_setting(setting)):
            summary.jobs[row["state"]] += 1
        shown = self._shown(row)
        if shown is not None:
            shown.job_ids.append(row["job_id"])
        if row["state"] in (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED):
            self._add_failure(row)
        self._add_facets(row["metadata"] or {})
        for moment in (row["started_at"], row["finished_at"]):
            if moment is not None:
                self.started_at = min(self.started_at or moment, moment)
                self.finished_at = max(self.finished_at or moment, moment)

    def _add_answer(self, row: dict[str, Any], setting: int) -> None:
        length = row["completion_tokens"]
        key, text = prompt_key(row), text_key(row["text"])
        shown = self._prompts.get(key)
        expects_json = shown.asks_for_json if shown is not None else asks_for_json(asked(row))
        answer = Answer(
            prompt=key,
            text=text,
            length=length,
            logprob=row["cumulative_logprob"] / length if length else None,
            repetition=repetition(row["text"]),
            is_json=is_json(row["text"]) if expects_json else None,
            finish_reason=row["finish_reason"],
        )
        self.summary.add(answer)
        self._of_setting(setting).add(answer)
        if shown is not None and shown.job_ids[-1:] == [row["job_id"]]:
            shown.num_answers += 1
            shown.num_tokens += length
            shown.cells[setting, shown.groups.setdefault(text, len(shown.groups))] += 1

    def _of_setting(self, setting: int) -> Summary:
        return self.by_setting.setdefault(setting, Summary())

    def _shown(self, row: dict[str, Any]) -> ShownPrompt | None:
        """The prompt of a row, if the page has room for its job."""
        key = prompt_key(row)
        if self._max_prompts is not None and self.summary.count >= MAX_ANSWERS:
            if key not in self._prompts:
                self._unseen.add(key)
            return None
        if key not in self._prompts:
            if key in self._unseen or (self._max_prompts is not None and len(self._prompts) >= self._max_prompts):
                self._unseen.add(key)
                return None
            self._prompts[key] = ShownPrompt(prompt_id(row["custom_id"], row["grid_point"]), asks_for_json(asked(row)))
        return self._prompts[key]

    def _add_failure(self, row: dict[str, Any]) -> None:
        code, error = row["error_code"] or "", row["error"] or ""
        key = (row["state"], code, NUMBER.sub("0", error))
        if key not in self.causes and len(self.causes) >= MAX_CAUSES:
            key, error = (row["state"], code, ""), "other errors of this kind"
        cause = self.causes.setdefault(key, Cause(row["state"], code, error[:2_000]))
        cause.count += 1
        if len(cause.examples) < MAX_EXAMPLES:
            cause.examples.append(row["custom_id"])

    def _add_facets(self, metadata: dict[str, Any]) -> None:
        for name, value in metadata.items():
            if not isinstance(value, str | int | float | bool) or len(str(value)) > 60:
                continue
            if name in self.facets or len(self.facets) < MAX_FACETS:
                values = self.facets.setdefault(name, Counter())
                if str(value) in values or len(values) <= MAX_FACET_VALUES:
                    values[str(value)] += 1
