"""The pages of the server and their addresses."""

from __future__ import annotations

import io
import shlex
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.resources import files
from importlib.util import find_spec
from itertools import islice
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from models.database.faults import DatabaseUnavailable, first_line
from models.states import JobState
from producer.errors import UsageError
from producer.results.page_text import page_text
from producer.results.queries import RunProgress, find_job, find_run, recent_errors, run_progress
from producer.results.report.figure_rows import figure_page_of_jobs
from producer.results.report.run_page import RunPage
from producer.results.sql import catalog
from producer.results.sql.examples import EXAMPLES
from producer.results.sql.statement import answer
from producer.results.view.access import POLICY, Door
from producer.results.view.reads import (
    JOBS_PER_PAGE,
    RUNS_PER_PAGE,
    job_page,
    jobs_of_prompt,
    newest_answers,
    run_page,
)
from producer.results.view.run_reports import RunReports

ASSETS = files("producer.results.view") / "assets"
STYLE = files("producer.results.report") / "assets" / "style.css"

#: Rows of a statement that the page shows, characters of one cell, and seconds that it may take.
MAX_ROWS, MAX_CELL, SQL_SECONDS = 1_000, 2_000, 30.0


class Pages:
    """The handlers: each reads what its page shows, in a thread of the server."""

    def __init__(self, database: Engine, options: str) -> None:
        self._database = database
        self._options = options
        self._reports = RunReports(database, options)
        self._templates = Environment(
            loader=PackageLoader("producer.results.view"), autoescape=True, undefined=StrictUndefined, finalize=_seen
        )
        self._templates.filters["count"] = "{:,}".format
        self._templates.filters["minute"] = lambda moment: moment.strftime("%Y-%m-%d %H:%M")

    def runs(self, request: Request) -> Response:
        """The list of runs, the newest first."""
        before = request.query_params.get("before")
        try:
            moment = datetime.fromisoformat(before).astimezone(UTC) if before else None
        except (ValueError, OverflowError) as error:
            raise UsageError(f"{before!r} is not a time") from error
        found = run_page(self._database, None if moment is None else (moment, request.query_params.get("id", "")))
        older = found[-1] if len(found) == RUNS_PER_PAGE else None
        return self._page("runs.html", runs=found, older=older, is_first=moment is None)

    def run(self, request: Request) -> Response:
        """A run: its progress, the newest answers, and a page of its jobs."""
        progress = self._progress(request)
        state = request.query_params.get("state") or None
        if state is not None and state not in list(JobState):
            raise UsageError(f"{state!r} is not a state of a job")
        after = _number(request.query_params.get("after", "0"))
        jobs = job_page(self._database, progress.id, after, state)
        behind = jobs[-1]["id"] if len(jobs) == JOBS_PER_PAGE else None
        shown: dict[str, Any] = {
            "jobs": jobs,
            "behind": behind,
            "after": after,
            "state": state,
            "states": list(JobState),
        }
        return self._page("run.html", **self._live(progress), **shown)

    def progress(self, request: Request) -> Response:
        """The part of a run's page that changes while it runs."""
        return self._page("progress.html", **self._live(self._progress(request)))

    def find(self, request: Request) -> Response:
        """The page of the job with a custom id."""
        run_id = find_run(self._database, request.path_params["run"])
        job = find_job(self._database, run_id, request.query_params.get("id", "").strip())
        return RedirectResponse(f"/runs/{run_id}/jobs/{job['id']}", 303)

    def job(self, request: Request) -> Response:
        """The report's page of one prompt: the answers of all its jobs, with their tokens."""
        progress = self._progress(request)
        found = jobs_of_prompt(self._database, progress.id, _number(request.path_params["job"]))
        if found is None:
            raise UsageError(f"run {progress.id} has no such job")
        name, job_ids = found
        page = RunPage(self._database, progress, None, "auto")
        page.read([figure_page_of_jobs(self._database, job_ids)])
        text = io.StringIO()
        page.write_prompt(text, self._options, name, f"/runs/{progress.id}")
        return HTMLResponse(text.getvalue())

    def report(self, request: Request) -> Response:
        """The report of the whole run; a page that says how far it is until it is made."""
        progress = self._progress(request)
        report = self._reports.of(progress, f"/runs/{progress.id}")
        if report.error is not None:
            raise report.error
        if report.content is None:
            return self._page("making.html", run=progress, report=report)
        return HTMLResponse(report.content)

    def sql(self, request: Request) -> Response:
        """The box for a SELECT, and the rows of the one in the address."""
        statement = request.query_params.get("q", "").strip()
        dialect = self._database.dialect.name
        shown: dict[str, Any] = {"columns": [], "rows": [], "num_rows": 0, "problem": None}
        if statement:
            try:
                shown = _rows_of(self._database, statement.rstrip(";"))
            except UsageError as error:
                shown["problem"] = str(error)
        examples = [(example.question, example.statement(dialect)) for example in EXAMPLES]
        file = self._database.url.database if dialect == "sqlite" and has_datasette() else None
        file = None if file is None else shlex.quote(file)
        tables = [name for name, _, _ in catalog.tables(self._database)]
        shown |= {"examples": examples, "file": file, "most": MAX_ROWS, "tables": tables}
        return self._page("sql.html", statement=statement, **shown)

    def _progress(self, request: Request) -> RunProgress:
        return run_progress(self._database, find_run(self._database, request.path_params["run"]))

    def _live(self, progress: RunProgress) -> dict[str, Any]:
        return {
            "run": progress,
            "newest": newest_answers(self._database, progress.id),
            "errors": recent_errors(self._database, progress.id),
        }

    def _page(self, name: str, status: int = 200, **values: Any) -> Response:
        text = self._templates.get_template(name).render(**values)
        return HTMLResponse(text, status, {"Content-Security-Policy": POLICY})

    def wrong_use(self, request: Request, error: Exception) -> Response:  # noqa: ARG002
        return self._page("problem.html", 404, problem=str(error))

    def fault(self, request: Request, error: Exception) -> Response:  # noqa: ARG002
        """A database that does not answer: one line, and the server goes on."""
        return self._page("problem.html", 503, problem=first_line(getattr(error, "orig", None) or error))


def has_datasette() -> bool:
    """Whether Datasette is installed: in this environment, or as a program of its own."""
    return find_spec("datasette") is not None or shutil.which("datasette") is not None


def make_app(database: Engine, token: str, host: str, port: int, options: str) -> Starlette:
    """The application; `options` are those of the commands that its pages name."""
    pages = Pages(database, options)
    routes: dict[str, Callable[[Request], Response]] = {
        "/": lambda request: RedirectResponse("/runs", 303),  # noqa: ARG005
        "/runs": pages.runs,
        "/runs/{run}": pages.run,
        "/runs/{run}/progress": pages.progress,
        "/runs/{run}/find": pages.find,
        "/runs/{run}/jobs/{job}": pages.job,
        "/runs/{run}/report": pages.report,
        "/sql": pages.sql,
        "/style.css": partial(_asset, "text/css", [STYLE, ASSETS / "view.css"]),
        "/live.js": partial(_asset, "text/javascript", [ASSETS / "live.js"]),
    }
    return Starlette(
        routes=[Route(path, handler) for path, handler in routes.items()],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=Door(token, host, port))],
        exception_handlers={
            UsageError: pages.wrong_use,
            DBAPIError: pages.fault,
            DatabaseUnavailable: pages.fault,
        },
    )


def _asset(media_type: str, parts: Sequence[Any], request: Request) -> Response:  # noqa: ARG001
    return PlainTextResponse("".join(each.read_text(encoding="utf-8") for each in parts), media_type=media_type)


def _number(text: str) -> int:
    """Raises `UsageError`."""
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise UsageError(f"{text!r} is not the number of a job")
    return int(text)


def _rows_of(database: Engine, statement: str) -> dict[str, Any]:
    """The columns and the first rows of a statement. Raises `UsageError`."""
    with answer(database, statement, SQL_SECONDS) as found:
        rows = [[_cell(value) for value in row] for row in islice(found.rows, MAX_ROWS)]
        return {"columns": found.columns, "rows": rows, "num_rows": found.rows.num_rows, "problem": None}


def _cell(value: Any) -> str | None:
    text = None if value is None else str(value)
    return text if text is None or len(text) <= MAX_CELL else f"{text[:MAX_CELL]}…"


def _seen(value: Any) -> Any:
    """Every text that a template shows, but for markup of its own."""
    return page_text(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
