"""The pages of `producer view` by a real HTTP client: who gets in, what they show, and that nothing is written."""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html import unescape
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Thread
from time import sleep
from urllib.parse import quote, urlencode

import pytest
import uvicorn
from sqlalchemy import Engine, insert, select, update
from starlette.requests import Request
from starlette.responses import Response

from models.database.connection import open_database
from models.schema.job import Job
from models.schema.run import Run
from models.states import JobState
from producer.errors import UsageError
from producer.results.page_text import page_text
from producer.results.queries import run_progress
from producer.results.view.access import Door
from producer.results.view.app import make_app
from producer.results.view.command import Address, listening_socket
from producer.results.view.reads import JOBS_PER_PAGE, RUNS_PER_PAGE
from producer.results.view.run_reports import MAX_REPORTS, RunReports
from producer.runs.control import requeue
from tests.browser.hostile_run import HOSTILE, fill
from tests.conftest import Producer
from tests.support.processes import HANG_SECONDS, CommandProcess, wait_until
from tests.support.table_rows import RUN_ID, insert_run, output_of
from worker.storage.job_store import FinishedJob, JobStore

TOKEN = "the-token"


class Reader:
    """A browser without scripts: it keeps the cookie, and follows the way in."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookie = ""

    def ask(self, path: str, *, method: str = "GET", **headers: str) -> tuple[HTTPResponse, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=HANG_SECONDS)
        connection.request(method, path, headers={"Cookie": self.cookie, **headers})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer, text

    def enter(self) -> None:
        answer, _ = self.ask(f"/runs?token={TOKEN}")
        assert (answer.status, answer.headers["Location"]) == (303, "/runs")
        self.cookie = answer.headers["Set-Cookie"].partition(";")[0]

    def read(self, path: str) -> str:
        answer, text = self.ask(path)
        assert answer.status == 200, (path, answer.status, text[-300:])
        return text


@contextmanager
def serving(database: Engine) -> Iterator[Reader]:
    """A server of the pages, and a reader who is in."""
    assert database.url.database is not None
    read_only = open_database(database.url.render_as_string(hide_password=False), read_only=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        app = make_app(read_only, TOKEN, "127.0.0.1", port, "")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, ws="none", lifespan="off"))
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            reader = Reader(port)
            reader.enter()
            yield reader
        finally:
            server.should_exit = True
            thread.join()
            read_only.dispose()


def links(text: str) -> set[str]:
    """The addresses that a page leads to, without those of its own sections."""
    found = {unescape(each) for each in re.findall(r"""(?:href|src|data-source)="([^"]*)\"""", text)}
    return {each for each in found if each.startswith("/")}


def job_names(text: str) -> list[str]:
    return [unescape(each) for each in re.findall(r'<th scope="row"><a href="[^"]*/jobs/\d+">([^<]*)</a>', text)]


def test_a_stranger_stays_outside(sqlite_database: Engine) -> None:
    with serving(sqlite_database) as reader:
        stranger = Reader(reader.port)
        for path in ("/", "/runs", "/sql?q=select+1", "/style.css", "/runs?token=wrong", "/runs?token=", "/no-such"):
            answer, text = stranger.ask(path)
            assert answer.status == 403 and "token" in text, path
            assert "Set-Cookie" not in answer.headers
        cookie = stranger.ask(f"/sql?q=select+1&token={TOKEN}")[0]
        assert cookie.headers["Location"] == "/sql?q=select+1"  # the token stays in no history
        assert {"HttpOnly", "SameSite=strict"} <= set(cookie.headers["Set-Cookie"].split("; "))
        # Names that point here, as a site may make them.
        for host in ("evil.example", f"evil.example:{reader.port}", "127.0.0.1.evil.example"):
            assert reader.ask("/runs", Host=host)[0].status == 421, host
        for host in ("localhost", f"localhost:{reader.port}", "127.0.0.1", f"[::1]:{reader.port}"):
            assert reader.ask("/runs", Host=host)[0].status == 200, host
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert reader.ask("/sql", method=method)[0].status == 405
        answer, _ = reader.ask("/runs")
        assert answer.headers["Cache-Control"] == "no-store" and answer.headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_every_page_is_there_and_nothing_in_it_is_markup(database: Engine) -> None:
    fill(database)
    with serving(database) as reader:
        left, pages = {"/"}, dict[str, str]()
        while left:
            path = left.pop()
            answer, text = reader.ask(path)
            if answer.status == 303:
                left.add(answer.headers["Location"])
                continue
            assert answer.status == 200, (path, text)
            if path.endswith("/report"):
                wait_until(lambda path=path: "The report is being made" not in reader.read(path))  # type: ignore[misc]
                text = reader.read(path)
            pages[path] = text
            left |= links(text) - set(pages)
        jobs = [path for path in pages if "/jobs/" in path]
        reports = [path for path in pages if path.endswith("/report")]
        assert len(jobs) > 40 and len(reports) == 2
        for path, text in pages.items():
            assert HOSTILE[:20] not in text and "<img" not in text, path
            assert page_text(text) == text, path  # nothing is invisible, or turns what is beside it
        assert "job" in pages["/runs"] and quote(RUN_ID) in pages["/runs"]
        found, _ = reader.ask(f"/runs/{RUN_ID}/find?{urlencode({'id': f'1 {HOSTILE}#1'})}")
        assert found.status == 303 and found.headers["Location"] in jobs
        title = re.findall(r"<h1>(.*?)</h1>", reader.read(found.headers["Location"]))[0]
        assert unescape(title).startswith("1 </script>")


def test_pages_by_key_show_each_row_once_and_in_order(database: Engine) -> None:
    job_ids = insert_run(database, 2 * JOBS_PER_PAGE + 7)
    with database.begin() as connection:
        connection.execute(update(Job).where(Job.id.in_(job_ids[::3])).values(state="cancelled"))
        same = connection.execute(Run.__table__.select()).mappings().one()
        others = [{**same, "id": f"run-{number}", "content_hash": "x"} for number in range(RUNS_PER_PAGE + 3)]
        connection.execute(insert(Run), others)  # all of one moment
    with serving(database) as reader:
        for state, wanted in (("", range(len(job_ids))), ("cancelled", range(0, len(job_ids), 3))):
            names: list[str] = []
            path: str | None = f"/runs/{RUN_ID}?state={state}"
            while path is not None:
                text = reader.read(path)
                names += job_names(text)
                path = next((each for each in links(text) if "after=" in each), None)
            assert names == [f"job-{number}" for number in wanted]
        first = reader.read("/runs")
        (older,) = (each for each in links(first) if "before=" in each)
        runs = [re.findall(r'<th scope="row"><a href="/runs/([^"]*)"', text) for text in (first, reader.read(older))]
        assert len(runs[0]) == RUNS_PER_PAGE and len(runs[1]) == 4
        assert {*runs[0], *runs[1]} == {RUN_ID, *(run["id"] for run in others)}


def test_a_prompt_has_all_jobs_of_its_grid_and_no_others(sqlite_database: Engine) -> None:
    job_ids = insert_run(sqlite_database, 7)
    names = ["a#1", "a#2", "b", "b#1", "b#2", "b#3", "a#3"]  # a name may come twice, and have a # of its own
    with sqlite_database.begin() as connection:
        for job_id, name in zip(job_ids, names, strict=True):
            point = None if name == "b" else {"temperature": 1}
            connection.execute(update(Job).where(Job.id == job_id).values(custom_id=name, grid_point=point))
    with serving(sqlite_database) as reader:
        found = {}
        for job_id, name in zip(job_ids, names, strict=True):
            text = reader.read(f"/runs/{RUN_ID}/jobs/{job_id}")
            found[name] = int(re.findall(r"<dt>jobs</dt><dd>(\d+)</dd>", text)[0])
    assert found == {"a#1": 2, "a#2": 2, "b": 1, "b#1": 3, "b#2": 3, "b#3": 3, "a#3": 1}


@pytest.mark.parametrize(
    ("statement", "part"),
    [
        ("select count(*) as n from runs;", "<th scope=\"col\">n</th>"),
        ("select '<b>' as x", "&lt;b&gt;"),
        ("select null", ">null<"),
        ("", "<code>answer_groups</code>"),
        ("select id from jobs", "the first 1,000 are shown"),
        ("delete from runs", "the database refuses the statement"),
        ("select 1; select 2", "the database refuses the statement"),
        ("selec", "the database refuses the statement"),
        ("select '\0'", "NUL character"),
        ("", "where was the model least certain?"),
    ],
)  # fmt: skip
def test_the_box_takes_a_select_and_nothing_else(filled: Reader, statement: str, part: str) -> None:
    text = filled.read(f"/sql?{urlencode({'q': statement})}")
    assert part in text


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A server of a database with more than a thousand jobs, which is the same afterwards, to the byte."""
    from migrations.upgrade import upgrade

    path = tmp_path_factory.mktemp("filled") / "nocturne.db"
    database = open_database(f"sqlite:///{path}")
    upgrade(database)
    insert_run(database, 1_100)
    database.dispose()
    before = path.read_bytes()
    with serving(database) as reader:
        yield reader
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/runs/none", 404), (f"/runs/{RUN_ID}/jobs/999999", 404), (f"/runs/{RUN_ID}/jobs/x", 404),
        (f"/runs/{RUN_ID}/jobs/{'9' * 400}", 404), (f"/runs/{RUN_ID}?after=-1", 404),
        (f"/runs/{RUN_ID}?state=odd", 404),
        ("/runs?before=yesterday&id=1", 404), ("/runs?before=0001-01-01T00:00%2B14:00&id=1", 404),
        (f"/runs/{RUN_ID}/find?id=none", 404), (f"/runs/{RUN_ID}/find", 404),
        ("/../../etc/passwd", 404), ("/assets/view.css", 404),
    ],
)  # fmt: skip
def test_a_wrong_address_is_a_page_of_one_line(filled: Reader, path: str, status: int) -> None:
    answer, text = filled.ask(path)
    assert answer.status == status and "Traceback" not in text


def test_every_example_runs_in_the_box(filled: Reader) -> None:
    examples = [each for each in links(filled.read("/sql")) if each.startswith("/sql?q=")]
    assert len(examples) >= 10
    for each in examples:
        assert 'role="alert"' not in filled.read(each), each


def test_the_page_of_a_run_follows_it(sqlite_database: Engine) -> None:
    job_ids = insert_run(sqlite_database, 2)
    with serving(sqlite_database) as reader:
        assert "/live.js" in reader.read(f"/runs/{RUN_ID}")
        assert 'data-finished="false"' in reader.read(f"/runs/{RUN_ID}/progress")
        with sqlite_database.begin() as connection:
            connection.execute(update(Job).where(Job.id.in_(job_ids)).values(state="cancelled"))
            connection.execute(update(Run).values(num_cancelled=2, state="finished"))
        assert 'data-finished="true"' in reader.read(f"/runs/{RUN_ID}/progress")
        assert "/live.js" not in reader.read(f"/runs/{RUN_ID}")


def test_the_command_prints_an_address_and_ends_in_order(producer: Producer, sqlite_url: str, tmp_path: Path) -> None:
    producer("db", "upgrade", "--database", sqlite_url)
    with CommandProcess("producer", ["view", "--database", sqlite_url], tmp_path) as process:
        line = process.read_until("token=")
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/runs\?token=([\w-]{32})\n", line.splitlines(True)[-1])
        assert found is not None, line
        reader = Reader(int(found[1]))
        answer, _ = reader.ask(f"/runs?token={found[2]}")
        assert answer.status == 303
        taken = producer("view", "--database", sqlite_url, "--port", found[1], exit_code=2)
        assert taken.stderr.startswith(f"error: cannot listen at 127.0.0.1 port {found[1]}: ") and not taken.stdout
        process.signal(signal.SIGINT)
        assert process.finish() == 0


def test_a_database_that_goes_away_is_one_line(tmp_path: Path) -> None:
    from migrations.upgrade import upgrade

    path = tmp_path / "nocturne.db"
    database = open_database(f"sqlite:///{path}")
    upgrade(database)
    with database.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE runs RENAME TO gone")
    with serving(database) as reader:
        answer, text = reader.ask("/runs")
        assert answer.status == 503 and "no such table: runs" in unescape(text)
    database.dispose()


@pytest.mark.parametrize("is_installed", [False, True])
def test_datasette_is_named_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_installed: bool
) -> None:
    from migrations.upgrade import upgrade

    monkeypatch.setenv("PATH", str(tmp_path))  # with no program of that name
    if is_installed:
        (tmp_path / "datasette.py").write_text("")
        monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "a night's.db"
    database = open_database(f"sqlite:///{path}")
    upgrade(database)
    with serving(database) as reader:
        text = unescape(reader.read("/sql"))
    database.dispose()
    assert ("Datasette is installed" in text) is is_installed
    assert (f"datasette {shlex.quote(str(path))}" in text) is is_installed


def test_a_report_is_made_again_after_a_retry(sqlite_database: Engine) -> None:
    """Then as many jobs are final as before."""
    fill(sqlite_database)
    path = f"/runs/{RUN_ID}/report"
    with serving(sqlite_database) as reader:
        wait_until(lambda: "The report is being made" not in reader.read(path))
        before = re.findall("<dt>succeeded</dt><dd>([0-9]+)</dd>", reader.read(path))
        assert requeue(sqlite_database, RUN_ID, [JobState.FAILED]) == 2
        with sqlite_database.connect() as connection:
            failed = list(connection.execute(select(Job.id).where(Job.state == JobState.QUEUED)).scalars())
        store = JobStore(sqlite_database, "worker", 30.0)
        store.commit([FinishedJob(claim, output_of(claim.job_id)) for claim in store.claim(failed)])
        wait_until(lambda: "The report is being made" not in reader.read(path))
        after = re.findall("<dt>succeeded</dt><dd>([0-9]+)</dd>", reader.read(path))
    assert (before, after) == (["22"], ["24"])


def test_readers_of_many_reports_wait_for_each_of_them_once(
    sqlite_database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert_run(sqlite_database, 1)
    monkeypatch.setattr(RunReports, "_make", lambda *_: None)  # it takes forever
    reports, progress = RunReports(sqlite_database, ""), run_progress(sqlite_database, RUN_ID)
    runs = [replace(progress, id=f"run-{number}") for number in range(2 * MAX_REPORTS)]
    asked = [reports.of(run, "") for run in runs]
    assert all(reports.of(run, "") is report for run, report in zip(runs, asked, strict=True))
    for report in asked:
        report.content = "made"
    reports.of(replace(progress, id="another"), "")
    assert [reports.of(run, "").content for run in runs[-MAX_REPORTS + 1 :]] == ["made"] * (MAX_REPORTS - 1)


@pytest.mark.parametrize(("host", "asked"), [("MyBox", "mybox"), ("mybox", "MyBox:80")])
def test_a_host_has_its_name_in_any_case(host: str, asked: str) -> None:
    async def answer(_: Request) -> Response:
        return Response("in")

    scope = {"type": "http", "method": "GET", "scheme": "http", "path": "/", "query_string": b"",
             "headers": [(b"host", asked.encode()), (b"cookie", b"nocturne_80=t")]}  # fmt: skip
    assert asyncio.run(Door("t", host, 80)(Request(scope), answer)).status_code == 200


def test_a_host_that_no_name_can_be_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"^cannot listen at a\.\.b port 0: "):
        listening_socket(Address("a..b"))


def test_a_report_that_cannot_be_made_says_why_and_is_made_when_it_can(sqlite_database: Engine) -> None:
    fill(sqlite_database)
    path = f"/runs/{RUN_ID}/report"

    def end_of(reader: Reader) -> str:
        """The page that comes after those which say how far the report is."""
        while "The report is being made" in (text := reader.ask(path)[1]):
            sleep(0.02)
        return unescape(text)

    with serving(sqlite_database) as reader:
        with sqlite_database.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE token_traces RENAME TO gone")
        assert "no such table: token_traces" in end_of(reader)
        with sqlite_database.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE gone RENAME TO token_traces")
        assert 'data-chunk="overview"' in end_of(reader)
