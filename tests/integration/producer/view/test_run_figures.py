"""The figures of a run, which pages count in SQL and by arrays, against the same ones counted row by row here."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, select, text, update

from models.schema.job import Job
from models.schema.job_event import JobEvent
from models.schema.result import Result
from models.schema.run import Run
from models.schema.trace import TokenTrace
from producer.results.queries import run_progress
from producer.results.report import figure_rows, timeline
from producer.results.report.distinct import DistinctCounter
from producer.results.report.measures import is_json, repetition
from producer.results.report.run_page import RunPage
from producer.results.report.tokens import statistics
from producer.results.report.tokens.counts import LAST_STEP, STEPS, token_counts
from producer.results.selection import Selection
from tests.browser.hostile_run import fill
from tests.integration.producer.view.test_view import serving
from tests.support.processes import wait_until
from tests.support.table_rows import RUN_ID

Tokens = Sequence[Any]


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 50)), st.lists(st.integers(0, 50)))
def test_distinct_numbers_are_counted_exactly(first: list[int], second: list[int]) -> None:
    counters = DistinctCounter(), DistinctCounter()
    for counter, numbers in zip(counters, (first * 3, second), strict=True):
        counter.add(numbers[:3])
        counter.add(numbers[3:])
        assert len(counter) == len(set(numbers))
    counters[0].update(counters[1])
    assert len(counters[0]) == len({*first, *second})


def test_distinct_numbers_beyond_what_is_held_apart() -> None:
    counter = DistinctCounter()
    for number in range(30_000):
        counter.add([number % 7_001])
    assert len(counter) == 7_001


def chunk(page: str, name: str) -> Any:
    """A chunk of a page's data."""
    (packed,) = re.findall(rf'data-chunk="{name}">([^<]*)<', page)
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def made_report(database: Engine) -> dict[str, Any]:
    """The figures in the page that the server makes of the run."""
    with serving(database) as reader:
        path = f"/runs/{RUN_ID}/report"
        wait_until(lambda: "The report is being made" not in reader.read(path))
        found: dict[str, Any] = chunk(reader.read(path), "overview")
        return found


def test_each_figure_of_the_overview_is_that_of_its_rows(
    database: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In pages and statements of a few rows, so that nothing is lost between two of them."""
    monkeypatch.setattr(figure_rows, "JOBS_PER_PAGE", 5)
    monkeypatch.setattr(timeline, "JOBS_PER_STATEMENT", 7)
    monkeypatch.setattr(statistics, "RESULTS_PER_STATEMENT", 2)
    fill(database)
    with database.begin() as connection:
        some = select(Result.id).order_by(Result.id).limit(9)
        connection.execute(update(Result).where(Result.id.in_(some)).values(text='{"a": [1, 2, 1, 2]}'))
        connection.execute(update(Result).where(Result.id == 2).values(text="NaN"))
    head = made_report(database)
    with (tmp_path / "report.html").open("w", encoding="utf-8") as file:
        page = RunPage(database, run_progress(database, RUN_ID), None, "auto")
        page.read(figure_rows.figure_pages(database, RUN_ID))
        page.write(file, "")
    written = chunk((tmp_path / "report.html").read_text(encoding="utf-8"), "overview")
    assert head.pop("more").startswith("the page of the run") and "--all" in written.pop("more")
    assert {**written, "made": None} == {**head, "made": None}  # the server's page and the file are of one rule

    with database.connect() as connection:
        view = "SELECT * FROM job_results WHERE run_id = :run ORDER BY job_id, sample_index"
        rows = [row._asdict() for row in connection.execute(text(view), {"run": RUN_ID})]
        tokens = connection.execute(select(TokenTrace.result_id, TokenTrace.entropy, TokenTrace.rank)).all()
    check_summary(head["all"], rows)
    by_setting = defaultdict(list)
    for row in rows:
        by_setting[row["custom_id"].rsplit("#", 1)[1]].append(row)  # each prompt of the run has each setting once
    assert len(head["settings"]) == len(by_setting)
    for setting, its_rows in zip(head["settings"], by_setting.values(), strict=True):
        check_summary(setting, its_rows)
        ids = {row["result_id"] for row in its_rows}
        check_tokens(setting, [token for token in tokens if token.result_id in ids])
    assert sum(cause["count"] for cause in head["failures"]) == sum(row["state"] == "failed" for row in rows) == 2


@pytest.mark.parametrize(
    ("max_prompts", "selection", "note"),
    [
        (None, Selection(), "Showing all 4 prompts."),
        (1, Selection(), "Showing 1 of 4 prompts; the figures are of all, and producer report --all has every one."),
        (None, Selection(("failed",)), "Only jobs with state failed. Showing the one prompt."),
        (None, Selection((), (), (("topic", "cats"),)), "Only jobs with topic = cats. Showing the one prompt."),
        (None, Selection((), (), (("topic", 1),)), "Only jobs with topic = 1. "),
    ],
)
def test_a_page_says_what_of_the_run_it_shows(
    sqlite_database: Engine, max_prompts: int | None, selection: Selection, note: str
) -> None:
    fill(sqlite_database)
    page = RunPage(sqlite_database, run_progress(sqlite_database, RUN_ID), max_prompts, "auto")
    page.read(figure_rows.figure_pages(sqlite_database, RUN_ID, selection))
    file = StringIO()
    page.write(file, "", selected=selection.words)
    assert f'<p class="note">{note}</p>' in file.getvalue()
    head = chunk(file.getvalue(), "overview")
    assert head["isPart"] is bool(selection.words) and head["timeline"] is not None


def check_summary(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    answers = [row for row in rows if row["text"] is not None]
    of_json = [row for row in answers if "JSON" in (row["prompt"] or "")]
    lengths = [row["completion_tokens"] for row in answers]
    assert found["count"] == len(answers)
    assert found["jobs"] == Counter({row["job_id"]: row["state"] for row in rows}.values())
    assert found["distinct"] == len({(row["prompt"], str(row["messages"]), row["text"]) for row in answers})
    assert found["finish"] == Counter(row["finish_reason"] for row in answers)
    assert found["length"] == pytest.approx(sum(lengths) / len(lengths), abs=1e-5)
    logprobs = [row["cumulative_logprob"] / row["completion_tokens"] for row in answers]
    assert found["logprob"] == pytest.approx(sum(logprobs) / len(answers), abs=1e-5)
    repeated = sum(repetition(row["text"]) for row in answers)
    assert found["repetition"] == pytest.approx(repeated / len(answers), abs=1e-5)
    wanted = sum(is_json(row["text"]) for row in of_json) / len(of_json) if of_json else None
    assert found["json"] == (wanted if wanted is None else pytest.approx(wanted, abs=1e-5))


def check_tokens(found: dict[str, Any], tokens: Tokens) -> None:
    assert found["tokens"] == len(tokens)
    assert found["rank1"] == pytest.approx(sum(token.rank == 1 for token in tokens) / len(tokens), abs=1e-5)


@pytest.mark.parametrize(("most", "stride"), [(10**6, 1), (154, 1), (153, 2), (40, 4), (1, 154)])
def test_a_server_counts_some_tokens_of_a_large_run_and_says_so(
    sqlite_database: Engine, monkeypatch: pytest.MonkeyPatch, most: int, stride: int
) -> None:
    monkeypatch.setattr(statistics, "MAX_COUNTED", most)
    fill(sqlite_database)
    with sqlite_database.begin() as connection:
        connection.execute(update(Run).where(Run.id == RUN_ID).values(completion_tokens=22 * 7))
    head = made_report(sqlite_database)
    assert head["stride"] == stride
    for setting in head["settings"]:
        assert setting["tokens"] == 7 * -(-setting["count"] // stride)  # the first of each so many
        assert setting["rank1"] == pytest.approx(5 / 7, abs=1e-5) and setting["entropy"]


def test_tokens_are_counted_by_position_and_entropy(database: Engine) -> None:
    fill(database)
    odd = {0: 0.0, 1: 0.0499, 2: 0.05, 3: 12.49, 4: 1e6}
    with database.begin() as connection:
        ids = list(connection.execute(select(Result.id).order_by(Result.id)).scalars())[1::2]
        for position, entropy in odd.items():
            of_token = (TokenTrace.result_id == ids[0], TokenTrace.position == position)
            connection.execute(update(TokenTrace).where(*of_token).values(entropy=entropy, rank=position))
        rows = connection.execute(select(TokenTrace).where(TokenTrace.result_id.in_(ids))).all()
    wanted: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        counts = wanted[row.position, min(int(row.entropy * STEPS), LAST_STEP)]
        counts[0] += 1
        counts[1] += row.rank == 1
    found = {(position, step): [count, first] for position, step, count, first in token_counts(database, ids)}
    assert found == wanted and rows
    assert list(token_counts(database, [10**6])) == []


def test_the_timeline_counts_each_event_and_token_in_its_bucket(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "JOBS_PER_STATEMENT", 3)
    fill(database)
    with database.begin() as connection:  # spread over an hour, the oldest first
        ids = list(connection.execute(select(JobEvent.id).order_by(JobEvent.id)).scalars())
        begin = datetime.fromisoformat("2026-11-01T00:00:00+00:00")
        for number, event_id in enumerate(ids):
            at = begin + timedelta(seconds=number * 3600 / len(ids))
            connection.execute(update(JobEvent).where(JobEvent.id == event_id).values(at=at))
        jobs = list(connection.execute(select(Job.id).where(Job.run_id == RUN_ID).order_by(Job.id)).scalars())
        for number, job_id in enumerate(jobs):
            at = begin + timedelta(seconds=60.0 * number)
            connection.execute(update(Job).where(Job.id == job_id).values(finished_at=at))
            connection.execute(update(Result).where(Result.job_id == job_id).values(decode_seconds=100.0))
    found = timeline.timeline(database, RUN_ID, len(jobs))
    assert found is not None
    with database.connect() as connection:
        of_run = select(JobEvent).join(Job).where(Job.run_id == RUN_ID)
        events = connection.execute(of_run.order_by(JobEvent.at)).all()
        answers = connection.execute(
            select(Job.finished_at, Result.completion_tokens).join(Result).where(Job.run_id == RUN_ID)
        ).all()
    span = (events[-1].at - events[0].at).total_seconds() / timeline.NUM_BUCKETS

    def bucket(moment: datetime) -> int:
        seconds = (moment - events[0].at).total_seconds() + 1e-4  # a time on a border lies behind it
        return min(timeline.NUM_BUCKETS - 1, max(0, int(seconds / span)))

    running, failed = [0] * timeline.NUM_BUCKETS, [0] * timeline.NUM_BUCKETS
    for event in events:
        failed[bucket(event.at)] += event.to_state == "failed"
        change = (event.to_state == "running") - (event.from_state == "running")
        running = [each + change * (number >= bucket(event.at)) for number, each in enumerate(running)]
    assert found["failed"] == failed and sum(failed) == 2
    assert found["running"] == running and max(running) > 1
    tokens = sum(answer.completion_tokens for answer in answers)
    assert sum(found["speed"]) * span == pytest.approx(tokens, rel=0.02)
    last = max(answer.finished_at for answer in answers)
    assert found["speed"][bucket(last)] > 0 and not any(found["speed"][bucket(last) + 1 :])
