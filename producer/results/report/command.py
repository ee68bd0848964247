"""`producer report`: reads a run twice, once for the figures and once for the answers that the page shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from models.schema.job import Job
from models.schema.result import Environment, Result
from models.settings import Settings
from producer.atomic_file import atomic_file
from producer.console import say
from producer.errors import UsageError
from producer.home import home_options
from producer.render import visible
from producer.results.database import check_reading_role, reading
from producer.results.queries import RunProgress, find_run, results, run_progress
from producer.results.report.comparison import Comparison, pair_chunks, pairs
from producer.results.report.overview import Overview
from producer.results.report.page import write_page
from producer.results.report.prompt_chunks import prompt_chunks, token_budget
from producer.results.report.timeline import timeline
from producer.results.report.token_statistics import TokenStatistics
from producer.results.selection import Selection

TOKEN_POLICIES = ("auto", "all", "none")

#: Bytes of a page for each token that it shows, about.
BYTES_PER_TOKEN = 8


#: Kind of change -> its name on top of a comparison.
KINDS_OF_CHANGE = {"same": "the same", "changed": "changed", "gained": "only B answers", "lost": "only A answers"}


@dataclass(frozen=True)
class PageOptions:
    """The part of a run that its page shows."""

    selection: Selection
    max_prompts: int | None  # None: all
    tokens: str  # TOKEN_POLICIES

    def check(self) -> None:
        """Raises `UsageError`."""
        if self.tokens not in TOKEN_POLICIES:
            raise UsageError(f"--tokens must be one of {', '.join(TOKEN_POLICIES)}, got {self.tokens!r}")


def write_report(
    settings: Settings, reference: str | None, output: Path, options: PageOptions, *, as_superuser: bool
) -> None:
    """Writes the page of a run. Raises `UsageError`."""
    options.check()
    with reading(settings) as database:
        check_reading_role(database, as_superuser=as_superuser)
        progress = run_progress(database, find_run(database, reference))
        overview, statistics = read_overview(database, progress.id, options)
        budget = token_budget(options.tokens, sum(prompt.num_tokens for prompt in overview.prompts))
        if options.tokens == "all":
            num_tokens = sum(prompt.num_tokens for prompt in overview.prompts)
            say(f"the page shows {num_tokens:,} tokens: about {num_tokens * BYTES_PER_TOKEN / 1e6:,.1f} MB")
        flags = home_options(settings) if settings.database is None else ""  # a page is passed on: no URL is in it
        head = _described(database, progress, overview, statistics, flags)
        chunks = _chunks(head, prompt_chunks(database, overview.prompts, overview.settings, budget), "prompts")
        with atomic_file(output) as file:
            write_page(file, visible(progress.name or progress.id), numbers(overview, head), chunks)
        say(f"{output}: {head['shown']['answers']:,} of {overview.summary.count:,} answers to {_prompts(overview)}")


def write_comparison(
    settings: Settings, references: tuple[str, str], output: Path, options: PageOptions, *, as_superuser: bool
) -> None:
    """Writes the page of two runs. Raises `UsageError`."""
    options.check()
    with reading(settings) as database:
        check_reading_role(database, as_superuser=as_superuser)
        first, second = (find_run(database, reference) for reference in references)
        if first == second:
            raise UsageError(f"both names are of run {first}; give two runs to compare")
        runs = (run_progress(database, first), run_progress(database, second))
        found = Comparison(options.max_prompts)
        for pair in pairs(database, (first, second), options.selection):
            found.add(pair)
        both = found.changes.total()
        if not both:
            raise UsageError(f"runs {first} and {second} have no custom_id in common; nothing can be compared")
        title = " and ".join(visible(run.name or run.id) for run in runs)
        top = [("jobs in both", f"{both:,}")] + [
            (name, f"{found.changes[kind]:,}") for kind, name in KINDS_OF_CHANGE.items()
        ]
        chunks = _chunks(found.described(runs), pair_chunks(database, found, second), "pairs")
        with atomic_file(output) as file:
            write_page(file, title, top, chunks)
        say(f"{output}: {len(found.shown):,} of {both:,} jobs that both runs have")


def read_overview(database: Engine, run_id: str, options: PageOptions) -> tuple[Overview, TokenStatistics]:
    """The figures of the selected answers."""
    overview, statistics = Overview(options.max_prompts), TokenStatistics(database)
    for setting, result_id in overview.read(results(database, run_id, options.selection)):
        statistics.add(setting, result_id)
    return overview, statistics


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


def _chunks(head: dict[str, Any], parts: Iterator[dict[str, Any]], name: str) -> Iterator[tuple[str, Any]]:
    """The figures, each chunk of prompts or pairs, and at last the numbers of the chunks' first ones."""
    yield "overview", head
    firsts: list[int] = []
    for chunk in parts:
        yield f"{name}-{len(firsts)}", chunk
        firsts.append(chunk["first"])
    yield "index", firsts


def _described(
    database: Engine, progress: RunProgress, overview: Overview, statistics: TokenStatistics, options: str
) -> dict[str, Any]:
    """The chunk of figures."""
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
        "environments": _environments(database, progress.id),
        "all": overview.summary.described(),
        "settings": [
            {
                **setting,
                **overview.by_setting[number].described(),
                "lengths": sorted(overview.by_setting[number].lengths.items()),
                **statistics.described(number),
            }
            for number, setting in enumerate(settings)
        ],
        "folded": overview.settings.is_folded,
        "failures": sorted((asdict(cause) for cause in overview.causes.values()), key=lambda each: -each["count"]),
        "timeline": timeline(database, progress.id, progress.num_jobs),
        "facets": {name: dict(values) for name, values in overview.facets.items() if len(values) <= 24},
        "shown": {
            "prompts": len(overview.prompts),
            "of": overview.num_prompts,
            "answers": sum(prompt.num_answers for prompt in overview.prompts),
        },
        "prompts": [
            {
                "id": prompt.custom_id,
                "json": prompt.asks_for_json,
                "answers": prompt.num_answers,
                "groups": len(prompt.groups),
                "cells": [[setting, group, count] for (setting, group), count in prompt.cells.items()],
            }
            for prompt in overview.prompts
        ],
    }


def _environments(database: Engine, run_id: str) -> list[dict[str, Any]]:
    """The models, devices and libraries that the run's results were decoded by."""
    used = select(Result.environment_id).join(Job, Job.id == Result.job_id).where(Job.run_id == run_id).distinct()
    with database.connect() as connection:
        found = connection.execute(select(Environment.__table__).where(Environment.id.in_(used))).mappings().all()
    return [dict(each) for each in found]


def _prompts(overview: Overview) -> str:
    shown, total = len(overview.prompts), overview.num_prompts
    return f"{total:,} prompts" if shown == total else f"{shown:,} of {total:,} prompts; --all shows every one"


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.1f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{hours:.1f} h"
