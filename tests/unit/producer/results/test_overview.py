"""The overview of a run, which is counted in arrays, against the same counted row by row here."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count, groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.results.report import measures, shown_prompts
from producer.results.report.figure_rows import FigurePage
from producer.results.report.job_settings import JobSettings
from producer.results.report.measures import is_json, repetition
from producer.results.report.overview import Overview
from producer.results.report.summary import Summary
from producer.results.report.tokens import statistics

Row = dict[str, Any]

PROMPTS = ("Hi", "", "some JSON", "jſon is json", "jsonl", "é" * 3_000)
CHATS = ('[{"role": "user", "content": "json, please"}]', '[{"content": "json, please", "role": "user"}]', '[{"a": 1}]')
PARAMS = ("{}", '{"temperature": 0.5}', '{"temperature": 0.7, "seed": 1}')
TEXTS = ("", "a", "a b a b a b", "{}", "NaN", '{"a": [1]}', "a b\0 \u2028 c", "x " * 50)
MOMENTS = st.none() | st.integers(0, 99).map(lambda second: f"2026-11-01 00:00:00.{second:06}")

ANSWERS = st.fixed_dictionaries({
    "text": st.sampled_from(TEXTS),
    "completion_tokens": st.integers(0, 5) | st.just(2**40),
    "cumulative_logprob": st.floats(-1e6, 0) | st.just(-1e-300),
    "finish_reason": st.sampled_from(["eos", "length", "odd"]),
    "environment_id": st.none() | st.sampled_from("ab"),
})  # fmt: skip

NO_ANSWER = dict.fromkeys(
    ("text", "result_id", "completion_tokens", "cumulative_logprob", "finish_reason", "environment_id")
)


@st.composite
def jobs(draw: st.DrawFn) -> Row:
    """A job with `answers`, none to three; whatever its state."""
    is_chat = draw(st.booleans())
    return {
        "custom_id": draw(st.sampled_from(["a", "b#1", "c#t=0.5", "#"])),
        "state": draw(st.sampled_from(["succeeded", "failed", "cancelled", "expired", "queued"])),
        "strategy": draw(st.sampled_from(["greedy", "sample"])),
        "prompt": None if is_chat else draw(st.sampled_from(PROMPTS)),
        "messages": draw(st.sampled_from(CHATS)) if is_chat else None,
        "chat": draw(st.none() | st.just('{"tools": []}')) if is_chat else None,
        "params": draw(st.sampled_from(PARAMS)),
        "grid_point": draw(st.none() | st.sampled_from(['{"temperature": 0.5}', '{"repeat": 3}'])),
        "metadata": draw(st.none() | st.sampled_from(['{"t": 1}', '{"t": 1.0}', "[]"])),
        "error": draw(st.none() | st.sampled_from(["died of 1", "died of 22", "other"])),
        "error_code": draw(st.none() | st.just("EngineDied")),
        "started_at": draw(MOMENTS),
        "finished_at": draw(MOMENTS),
        "answers": draw(st.lists(ANSWERS, max_size=3)),
    }


RUNS = st.lists(st.lists(jobs(), min_size=1, max_size=5), max_size=5)  # pages of jobs


def rows_of(pages: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """The rows of each page, numbered through the run."""
    numbers, result_ids = count(2**31), count(2**40)
    return [
        [
            {**job, "job_id": job_id, "result_id": next(result_ids), **answer}
            for job, job_id in zip(page, numbers, strict=False)
            for answer in job["answers"] or [NO_ANSWER]
        ]
        for page in pages
    ]


def page_of(rows: Sequence[Row]) -> FigurePage:
    return FigurePage(**{name: tuple(row[name] for row in rows) for name in FigurePage._fields})


def asked(row: Row) -> str:
    """The same text for what asks the same."""
    messages, chat = (json.loads(row[name] or "null") for name in ("messages", "chat"))
    return json.dumps([messages, chat], sort_keys=True) if row["prompt"] is None else str(row["prompt"])


def asks_for_json(row: Row) -> bool:
    return (
        re.search(r"\bjson\b", row["messages"] if row["prompt"] is None else row["prompt"], re.IGNORECASE) is not None
    )


def setting_numbers(rows: Sequence[Row]) -> list[int]:
    settings = JobSettings()
    return [
        settings.number_of(row | {name: json.loads(row[name] or "null") for name in ("params", "grid_point")})
        for row in rows
    ]


def jobs_of(rows: Sequence[Row]) -> list[list[Row]]:
    return [list(group) for _, group in groupby(rows, lambda row: row["job_id"])]


def check_summary(found: Summary, rows: Sequence[Row]) -> None:
    answers = [row for row in rows if row["text"] is not None]
    logprobs = [row["cumulative_logprob"] / row["completion_tokens"] for row in answers if row["completion_tokens"]]
    of_json = [is_json(row["text"]) for row in answers if asks_for_json(row)]
    num_prompts, distinct = (
        len({key(row) for row in answers}) for key in (asked, lambda row: (asked(row), row["text"]))
    )

    def mean(values: Sequence[float], whole: int | None = None) -> Any:
        whole = len(values) if whole is None else whole
        return pytest.approx(sum(values) / whole, rel=1e-9, abs=1.1e-5) if whole else None

    assert found.described() == {
        "count": len(answers),
        "jobs": Counter(job[0]["state"] for job in jobs_of(rows)),
        "distinct": distinct,
        "diversity": mean([distinct - num_prompts], len(answers) - num_prompts),
        "length": mean([row["completion_tokens"] for row in answers]),
        "logprob": mean(logprobs),
        "repetition": mean([repetition(row["text"]) for row in answers]),
        "json": mean(of_json),
        "ended": mean([row["finish_reason"] != "length" for row in answers]),
        "finish": Counter(row["finish_reason"] for row in answers),
    }
    assert found.lengths == Counter(row["completion_tokens"] for row in answers)
    json.dumps(found.described())  # whose numbers are Python's


def shown_reference(rows: Sequence[Row], max_prompts: int | None, max_answers: int) -> list[Any]:
    """Each shown prompt's name, jobs, answers, tokens and cells."""
    shown: dict[str, list[Any]] = {}
    groups: dict[str, dict[str, int]] = defaultdict(dict)
    num_answers = 0
    settings = dict(zip((row["result_id"] for row in rows), setting_numbers(rows), strict=True))
    for job in jobs_of(rows):
        answers = [row for row in job if row["text"] is not None]
        key, is_open = asked(job[0]), max_prompts is None or num_answers < max_answers
        num_answers += len(answers)
        if is_open and (key in shown or max_prompts is None or len(shown) < max_prompts):
            name = job[0]["custom_id"].rsplit("#", 1)[0] if job[0]["grid_point"] else job[0]["custom_id"]
            prompt = shown.setdefault(key, [name, asks_for_json(job[0]), [], 0, 0, Counter()])
            prompt[2].append(job[0]["job_id"])
            for row in answers:
                prompt[3] += 1
                prompt[4] += row["completion_tokens"]
                prompt[5][settings[row["result_id"]], groups[key].setdefault(row["text"], len(groups[key]))] += 1
    return list(shown.values())


@given(pages=RUNS, max_prompts=st.none() | st.integers(0, 4), max_answers=st.integers(0, 8))
def test_each_figure_is_that_of_the_rows(pages: list[list[Row]], max_prompts: int | None, max_answers: int) -> None:
    of_pages = rows_of(pages)
    rows = [row for page in of_pages for row in page]
    numbers = setting_numbers(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shown_prompts, "MAX_ANSWERS", max_answers)
        found = Overview(max_prompts)
        results = list(found.read(map(page_of, of_pages)))
    assert sorted((setting, id_) for setting, ids in results for id_ in ids) == sorted(
        (setting, row["result_id"]) for setting, row in zip(numbers, rows, strict=True) if row["text"] is not None
    )
    check_summary(found.summary, rows)
    for setting, summary in found.by_setting.items():
        check_summary(summary, [row for row, number in zip(rows, numbers, strict=True) if number == setting])
    assert found.by_setting.keys() == set(numbers)
    assert found.environments == {row["environment_id"] for row in rows} - {None}
    texts = [row[name] for row in rows for name in ("started_at", "finished_at") if row[name]]
    moments = [datetime.fromisoformat(text).replace(tzinfo=UTC) for text in texts]
    assert (found.started_at, found.finished_at) == (min(moments, default=None), max(moments, default=None))
    assert [list(vars(prompt).values())[:5] + [prompt.cells] for prompt in found.prompts.shown] == shown_reference(
        rows, max_prompts, max_answers
    )
    assert found.prompts.num_prompts == len({asked(row) for row in rows})
    check_jobs(found, [job[0] for job in jobs_of(rows)])


def check_jobs(found: Overview, rows: Sequence[Row]) -> None:
    """The causes of failures and the facets, which count jobs."""
    causes: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        if row["state"] in ("failed", "cancelled", "expired"):
            causes[row["state"], row["error_code"] or "", re.sub(r"\d+", "0", row["error"] or "")].append(row)
    assert {key: (cause.error, cause.count, cause.examples) for key, cause in found.causes.items()} == {
        key: (rows[0]["error"] or "", len(rows), [row["custom_id"] for row in rows[:5]]) for key, rows in causes.items()
    }
    with_topic = sum(row["metadata"] in ('{"t": 1}', '{"t": 1.0}') for row in rows)
    assert found.facets.described() == ({"t": [(1, with_topic)]} if with_topic else {})


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=20), st.integers(1, 4), st.integers(1, 5))
def test_of_each_setting_each_result_at_the_stride_is_counted(
    parts: list[tuple[int, int]], stride: int, per_statement: int
) -> None:
    noted: dict[int, list[int]] = defaultdict(list)
    counted: dict[int, list[int]] = defaultdict(list)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESULTS_PER_STATEMENT", per_statement)
        tokens = statistics.TokenStatistics(None, stride)  # type: ignore[arg-type]
        patch.setattr(tokens, "_add_counts", lambda setting, ids: counted[setting].extend(ids))
        for setting, size in parts:
            ids = [len(noted[setting]) + number for number in range(size)]
            noted[setting] += ids
            tokens.add(setting, ids)
        tokens.finish()
    assert counted == {setting: noted[setting][::stride] for setting in counted}
    assert counted.keys() == noted.keys()


def test_the_quick_look_for_json_misses_no_letter() -> None:
    """Letters that the expression takes for one of `json` are folded to it."""
    folded = {letter for letter in map(chr, range(sys.maxunicode + 1)) if re.fullmatch("[json]", letter, re.IGNORECASE)}
    assert "ſ" in folded and all(letter.casefold() in "json" for letter in folded)
    assert [measures.asks_for_json(text) for text in ("a jſon", "JSON!", "jsonl", "j son")] == [
        True,
        True,
        False,
        False,
    ]
