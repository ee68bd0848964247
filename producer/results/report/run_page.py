"""The page of a run, or of some of its jobs: their figures, then their prompts in chunks.

`producer report` writes it into a file, `producer view` serves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TextIO

from sqlalchemy import Engine, select

from models.schema.result import Environment
from producer.results.queries import RunProgress
from producer.results.report.figure_rows import FigurePage
from producer.results.report.overview import Overview
from producer.results.report.page import write_page
from producer.results.report.prompt_chunks import prompt_chunks, token_budget
from producer.results.report.timeline import timeline
from producer.results.report.tokens.statistics import TokenStatistics

#: The place of the prompts that a page does not show, in words.
ALL_OF_FILE = "producer report --all has every one"
ALL_OF_SERVER = "the page of the run lists every job"


class RunPage:
    """Reads rows of a run once for the figures, and the shown ones again while the page is written."""

    def __init__(
        self, database: Engine, progress: RunProgress, max_prompts: int | None, tokens: str, *, stride: int = 1
    ) -> None:
        self._database = database
        self._progress = progress
        self._tokens = tokens  # the policy
        self.overview = Overview(max_prompts)
        self._statistics = TokenStatistics(database, stride)

    def read(self, pages: Iterable[FigurePage]) -> None:
        """Adds pages of rows to the figures."""
        for setting, result_ids in self.overview.read(pages):
            self._statistics.add(setting, result_ids)
        self._statistics.finish()

    @property
    def num_tokens(self) -> int:
        """The tokens of the answers that the page shows."""
        return sum(prompt.num_tokens for prompt in self.overview.prompts.shown)

    def write(self, file: TextIO, options: str, *, selected: str = "", back: str | None = None) -> None:
        """Writes the page of the run, or of the jobs that are `selected` in words.

        `options` are those of the commands it names, `back` is a link to the page above.
        """
        more = ALL_OF_FILE if back is None else ALL_OF_SERVER
        head = self._described(options, more, is_part=bool(selected))
        head["timeline"] = timeline(self._database, self._progress.id, self._progress.num_jobs)
        which = f"Only jobs with {selected}. " if selected else ""
        self._write(
            file, self._progress.name or self._progress.id, head, which + shown_words(self.overview, more), back
        )

    def write_prompt(self, file: TextIO, options: str, title: str, back: str) -> None:
        """Writes the page of one prompt, which has no timeline."""
        self._write(file, title, self._described(options, ALL_OF_SERVER, is_part=True), "", back)

    def _write(self, file: TextIO, title: str, head: dict[str, Any], note: str, back: str | None) -> None:
        budget = token_budget(self._tokens, self.num_tokens)
        chunks = prompt_chunks(self._database, self.overview.prompts.shown, self.overview.settings, budget)
        parts = page_chunks(head, chunks, "prompts")
        write_page(file, title, numbers(self.overview, head), parts, note=note, back=back)

    def _described(self, options: str, more: str, *, is_part: bool) -> dict[str, Any]:
        """The chunk of figures, without the timeline."""
        overview, progress = self.overview, self._progress
        seconds = None
        if overview.started_at is not None and overview.finished_at is not None:
            seconds = (overview.finished_at - overview.started_at).total_seconds()
        settings = overview.settings.described()
        tokens = overview.summary.length
        return {
            "kind": "run",
            "run": {**asdict(progress), **{k: str(v) for k, v in asdict(progress).items() if isinstance(v, datetime)}},
            "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
            "seconds": seconds,
            "speed": tokens / seconds if seconds else None,
            "options": options,
            "isPart": is_part,
            "more": more,
            "stride": self._statistics.stride,
            "timeline": None,
            "environments": self._environments(),
            "all": overview.summary.described(),
            "settings": [
                {
                    **setting,
                    **overview.by_setting[number].described(),
                    "lengths": sorted(overview.by_setting[number].lengths.items()),
                    **self._statistics.described(number),
                }
                for number, setting in enumerate(settings)
            ],
            "folded": overview.settings.is_folded,
            "failures": sorted((asdict(cause) for cause in overview.causes.values()), key=lambda each: -each["count"]),
            "facets": overview.facets.described(),
            "shown": {
                "prompts": len(overview.prompts.shown),
                "of": overview.prompts.num_prompts,
                "answers": sum(prompt.num_answers for prompt in overview.prompts.shown),
            },
            "prompts": [
                {
                    "id": prompt.custom_id,
                    "json": prompt.asks_for_json,
                    "answers": prompt.num_answers,
                    "groups": len(prompt.groups),
                    "cells": [[setting, group, count] for (setting, group), count in prompt.cells.items()],
                }
                for prompt in overview.prompts.shown
            ],
        }

    def _environments(self) -> list[dict[str, Any]]:
        """The models, devices and libraries that the results were decoded by."""
        statement = select(Environment.__table__).where(Environment.id.in_(self.overview.environments))
        with self._database.connect() as connection:
            return [dict(each) for each in connection.execute(statement.order_by(Environment.id)).mappings()]


def shown_words(overview: Overview, more: str) -> str:
    """The part of the prompts that a page shows; `more` says where the others are."""
    shown, total = len(overview.prompts.shown), overview.prompts.num_prompts
    if shown < total:
        return f"Showing {shown:,} of {total:,} prompts; the figures are of all, and {more}."
    return {0: "", 1: "Showing the one prompt."}.get(total, f"Showing all {total:,} prompts.")


def numbers(overview: Overview, head: dict[str, Any]) -> list[tuple[str, str]]:
    """The five numbers on top of a page."""
    jobs = overview.summary.jobs
    speed, seconds = head["speed"], head["seconds"]
    return [
        ("jobs", f"{jobs.total():,}"),
        ("succeeded", f"{jobs['succeeded']:,}"),
        ("tokens", f"{overview.summary.length:,}"),
        ("tokens/s", "–" if speed is None else f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"),
        ("duration", "–" if seconds is None else _duration(seconds)),
    ]


def page_chunks(head: dict[str, Any], parts: Iterator[dict[str, Any]], name: str) -> Iterator[tuple[str, Any]]:
    """The figures, each chunk of prompts or pairs, and at last the numbers of the chunks' first ones."""
    yield "overview", head
    firsts: list[int] = []
    for chunk in parts:
        yield f"{name}-{len(firsts)}", chunk
        firsts.append(chunk["first"])
    yield "index", firsts


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.1f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{hours:.1f} h"
