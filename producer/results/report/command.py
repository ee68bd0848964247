"""`producer report`: reads a run twice, once for the figures and once for the answers that the page shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.settings import Settings
from producer.atomic_file import atomic_file
from producer.console import say
from producer.errors import UsageError
from producer.home import home_options
from producer.results.database import check_reading_role, reading
from producer.results.queries import find_run, run_progress
from producer.results.report.comparison import Comparison, pair_chunks, pair_pages
from producer.results.report.figure_rows import figure_pages
from producer.results.report.overview import Overview
from producer.results.report.page import write_page
from producer.results.report.run_page import RunPage, page_chunks
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
        page = RunPage(database, progress, options.max_prompts, options.tokens)
        page.read(figure_pages(database, progress.id, options.selection))
        if options.tokens == "all":
            say(f"the page shows {page.num_tokens:,} tokens: about {page.num_tokens * BYTES_PER_TOKEN / 1e6:,.1f} MB")
        flags = home_options(settings) if settings.database is None else ""  # a page is passed on: no URL is in it
        with atomic_file(output) as file:
            page.write(file, flags, selected=options.selection.words)
        overview = page.overview
        num_shown = sum(prompt.num_answers for prompt in overview.prompts.shown)
        say(f"{output}: {num_shown:,} of {overview.summary.count:,} answers to {_prompts(overview)}")


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
        for page in pair_pages(database, (first, second), options.selection):
            found.add(page)
        both, alone = found.changes.total(), _alone(found.num_alone(runs[1]))
        if not both:
            selected = f" of jobs with {options.selection.words}" if options.selection.words else ""
            common = f"have no custom_id{selected} in common{alone}"
            raise UsageError(f"runs {first} and {second} {common}; nothing can be compared")
        title = " and ".join(run.name or run.id for run in runs)
        top = [("jobs in both", f"{both:,}")] + [
            (name, f"{found.changes[kind]:,}") for kind, name in KINDS_OF_CHANGE.items()
        ]
        chunks = page_chunks(found.described(runs), pair_chunks(database, found, second), "pairs")
        with atomic_file(output) as file:
            write_page(file, title, top, chunks, note=_pairs_shown(found, options.selection.words, alone))
        say(f"{output}: {len(found.shown):,} of {both:,} jobs that both runs have{alone}")


def _pairs_shown(found: Comparison, selected: str, alone: str) -> str:
    which = f"Only jobs of A with {selected}. " if selected else ""
    shown, total = len(found.shown), found.changes.total()
    more = f"{shown:,} of {total:,} jobs; the figures are of all, and producer report --all has every one"
    return f"{which}Showing {more if shown < total else f'all {total:,} jobs that both runs have'}{alone}."


def _alone(numbers: tuple[int, int]) -> str:
    """The jobs that only one of the runs has, to follow other words."""
    parts = [f"{number:,} only in {letter}" for letter, number in zip("AB", numbers, strict=True) if number]
    return f"; {', '.join(parts)}" if parts else ""


def _prompts(overview: Overview) -> str:
    shown, total = len(overview.prompts.shown), overview.prompts.num_prompts
    return f"{total:,} prompts" if shown == total else f"{shown:,} of {total:,} prompts; --all shows every one"
