"""The report of a whole run, made once by a thread of its own while its reader sees how far it is, then kept."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any

from sqlalchemy import Engine

from producer.results.queries import RunProgress
from producer.results.report.figure_rows import FigurePage, figure_pages
from producer.results.report.run_page import RunPage
from producer.results.report.tokens.statistics import stride_of

#: Prompts on the page; the others are in the list of jobs.
MAX_PROMPTS = 200

#: Reports that are kept; those in the making are kept beyond, or each reader would begin another one's again.
MAX_REPORTS = 4


@dataclass
class RunReport:
    """A report, and how far it is while it is made."""

    num_jobs: int
    num_read: int = 0  # rows
    error: Exception | None = None
    content: str | None = None  # None: it is not made yet

    def counted(self, pages: Iterable[FigurePage]) -> Iterator[FigurePage]:
        for page in pages:
            self.num_read += len(page.job_id)
            yield page


class RunReports:
    """The reports of a server, by run and by its counts: a run that goes on or is retried gets another one."""

    def __init__(self, database: Engine, options: str) -> None:
        self._database = database
        self._options = options
        self._lock = Lock()
        self._reports: OrderedDict[tuple[Any, ...], RunReport] = OrderedDict()

    def of(self, progress: RunProgress, back: str) -> RunReport:
        """The report of a run as it is now; it may still be in the making.

        One that failed is returned once, with its error; who asks again has it made again.
        """
        # A retry ends with as many final jobs as before, and with another time or other counts.
        counts = (progress.num_jobs, progress.num_final, progress.succeeded, progress.completion_tokens)
        key = (progress.id, *counts, progress.finished_at)
        with self._lock:
            report = self._reports.get(key)
            if report is None:
                report = self._reports[key] = RunReport(progress.num_jobs)
                Thread(target=self._make, args=(report, progress, back), name="report", daemon=True).start()
            self._reports.move_to_end(key)
            if report.error is not None:
                del self._reports[key]
            made = [each for each, other in self._reports.items() if other.content is not None]
            for each in made[: max(0, len(self._reports) - MAX_REPORTS)]:
                del self._reports[each]
        return report

    def _make(self, report: RunReport, progress: RunProgress, back: str) -> None:
        try:
            stride = stride_of(progress.completion_tokens)
            page = RunPage(self._database, progress, MAX_PROMPTS, "auto", stride=stride)
            page.read(report.counted(figure_pages(self._database, progress.id)))
            text = io.StringIO()
            page.write(text, self._options, back=back)
            report.content = text.getvalue()
        except Exception as error:  # whoever asks for the page is told
            report.error = error
