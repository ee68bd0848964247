"""Numbers of others in the data of a page: it is JSON of which a browser reads each number as it is stored."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, update

from models.schema.job import Job
from models.schema.result import Result
from models.schema.trace import TokenTrace
from producer.results.queries import run_progress
from producer.results.report.comparison import Comparison, pair_chunks, pair_pages
from producer.results.report.figure_rows import figure_pages
from producer.results.report.measures import MAX_TEXT
from producer.results.report.page import MAX_WHOLE, write_page
from producer.results.report.run_page import RunPage
from producer.results.report.tokens.columns import Vocabulary, read_tokens
from tests.browser.hostile_run import fill
from tests.support.table_rows import RUN_ID, insert_run, output_of
from worker.storage.job_store import FinishedJob, JobStore

NUMBERS = st.floats() | st.integers() | st.sampled_from([2**53, 2**53 + 1, -(2**63), 10**300, 1e300, -0.0])
VALUES = st.recursive(
    NUMBERS | st.text() | st.none() | st.booleans() | st.just("</script>\ud800"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def chunks_of(page: str) -> dict[str, Any]:
    """The data of a page. Raises `ValueError` for what is none in JSON."""
    packed = dict(re.findall(r'data-chunk="([^"]*)">([^<]*)</script>', page))
    del packed["libraries"]
    texts = {name: gzip.decompress(base64.b64decode(text)).decode() for name, text in packed.items()}
    return {name: json.loads(text, parse_constant=_refuse, parse_int=_browser_number) for name, text in texts.items()}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _browser_number(digits: str) -> int:
    assert int(float(digits)) == int(digits), "a browser rounds it"
    return int(digits)


def shown(value: Any) -> Any:
    """A value as its reader is to see it."""
    if isinstance(value, dict):
        return {name: shown(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shown(inner) for inner in value]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_exact = not is_number or (abs(value) <= MAX_WHOLE if isinstance(value, int) else math.isfinite(value))
    return value if is_exact else json.dumps(value)


@given(VALUES)
def test_each_value_is_read_as_it_is(value: Any) -> None:
    file = StringIO()
    write_page(file, "title", [], [("data", value)])
    assert chunks_of(file.getvalue())["data"] == shown(value)


@pytest.fixture
def odd_numbers(sqlite_database: Engine) -> Engine:
    """Runs whose rows have every number that SQLite stores."""
    fill(sqlite_database)
    metadata = {"id": 2**60 + 1, "not": math.nan, "most": math.inf, "whole": 1e300}
    with sqlite_database.begin() as connection:
        connection.execute(update(Job).values(metadata_=metadata, seed=2**63 - 1))
        connection.execute(update(Result).values(cumulative_logprob=-math.inf, score=-math.inf))
    return sqlite_database


def test_a_run_with_odd_numbers_has_a_page(odd_numbers: Engine) -> None:
    page, file = RunPage(odd_numbers, run_progress(odd_numbers, RUN_ID), None, "auto"), StringIO()
    page.read(figure_pages(odd_numbers, RUN_ID))
    page.write(file, "")
    chunks = chunks_of(file.getvalue())
    answer = chunks["prompts-0"]["prompts"][0]["answers"][0]
    assert answer["seed"] == str(2**63 - 1) and not {"lp", "score"} & answer.keys()
    assert answer["meta"] == {"id": str(2**60 + 1), "not": "NaN", "most": "Infinity", "whole": 1e300}
    facets = {name: values[0][0] for name, values in chunks["overview"]["facets"].items()}
    assert facets == answer["meta"]  # which the program compares
    assert chunks["overview"]["all"]["logprob"] is None


#: Entropies and logprobs that no engine of ours writes; SQLite stores NaN as NULL, which the column refuses.
NO_FIGURES = {"sqlite": [math.inf, -math.inf, 1e308], "postgresql": [math.nan, math.inf, -math.inf, 1e308]}


def test_a_run_with_figures_of_another_program_has_a_page(database: Engine) -> None:
    fill(database)
    odd = NO_FIGURES[database.dialect.name]
    with database.begin() as connection:
        for position, number in enumerate(odd):
            of_token = update(TokenTrace).where(TokenTrace.position == position)
            connection.execute(of_token.values(entropy=number, logprob=number))
            connection.execute(update(Result).where(Result.id == position + 1).values(decode_seconds=number))
    page, file = RunPage(database, run_progress(database, RUN_ID), None, "auto"), StringIO()
    page.read(figure_pages(database, RUN_ID))
    page.write(file, "")
    chunks = chunks_of(file.getvalue())
    tokens = chunks["prompts-0"]["prompts"][0]["answers"][0]["tok"]
    nats = {math.inf: -(10**6), -math.inf: 10**6, 1e308: -(10**6)}
    assert tokens["p"][: len(odd)] == [nats.get(number) for number in odd]
    assert tokens["e"][: len(odd)] == [10**6 if number == 1e308 else None for number in odd]
    setting = chunks["overview"]["settings"][0]
    assert [position for position, *_ in setting["entropy"]] == [*range(len(odd), 7)]  # of the others
    assert (setting["tokens"], setting["rank1"]) == (28, round(5 / 7, 5))  # of all


def test_a_long_answer_is_judged_whole(sqlite_database: Engine) -> None:
    """A page holds the beginning of it alone, which is not JSON."""
    (job_id,) = insert_run(sqlite_database, 1, prompt="Answer in JSON.")
    store = JobStore(sqlite_database, "worker", 30.0)
    store.commit([FinishedJob(claim, output_of(job_id)) for claim in store.claim([job_id])])
    with sqlite_database.begin() as connection:
        connection.execute(update(Result).values(text=json.dumps(["x"] * MAX_TEXT)))
    page, file = RunPage(sqlite_database, run_progress(sqlite_database, RUN_ID), None, "auto"), StringIO()
    page.read(figure_pages(sqlite_database, RUN_ID))
    page.write(file, "")
    (prompt,) = chunks_of(file.getvalue())["prompts-0"]["prompts"]
    assert prompt["json"] == [True] and len(prompt["texts"][0]) < MAX_TEXT + 100


@pytest.mark.parametrize("num_ids", [70_000, 300_000])
def test_the_tokens_of_very_many_answers_are_read(database: Engine, num_ids: int) -> None:
    assert read_tokens(database, range(num_ids), Vocabulary()) == {}


def test_a_comparison_with_odd_numbers_has_a_page(odd_numbers: Engine) -> None:
    found, ids = Comparison(None), (RUN_ID, "later")
    for page in pair_pages(odd_numbers, ids):
        found.add(page)
    runs = run_progress(odd_numbers, ids[0]), run_progress(odd_numbers, ids[1])
    chunks = [("overview", found.described(runs)), ("pairs-0", next(pair_chunks(odd_numbers, found, "later")))]
    file = StringIO()
    write_page(file, "title", [], chunks)
    written = chunks_of(file.getvalue())
    assert [run["logprob"] for run in written["overview"]["runs"]] == [None, None]
    assert all("lp" not in side for pair in written["pairs-0"]["pairs"] for side in pair["sides"])
