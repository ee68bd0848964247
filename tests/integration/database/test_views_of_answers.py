"""The views over answers, on both databases: prompt ids, asked texts, groups, agreement, comparison, readers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import Engine, make_url, text, update

from migrations.upgrade import downgrade, upgrade
from models.database.connection import open_database
from models.schema.job import Job
from models.schema.result import Result
from tests.support.table_rows import insert_run, output_of
from worker.storage.job_store import FinishedJob, JobStore

User = dict[str, Any]


def rows_of(database: Engine, statement: str) -> list[tuple[Any, ...]]:
    with database.begin() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def change_jobs(database: Engine, run_id: str, **columns: Any) -> None:
    with database.begin() as connection:
        connection.execute(update(Job).where(Job.run_id == run_id).values(columns))


def insert_answers(database: Engine, run_id: str, answers: list[list[str]], **columns: Any) -> None:
    """A run whose jobs succeeded with those texts; a job without any is left queued."""
    job_ids = insert_run(database, len(answers), run_id=run_id, **columns)
    store = JobStore(database, "worker", 30.0)
    claims = store.claim([job_id for job_id, texts in zip(job_ids, answers, strict=True) if texts])
    texts_of = dict(zip(job_ids, answers, strict=True))
    store.commit([FinishedJob(claim, output_of(claim.job_id, samples=len(texts_of[claim.job_id]))) for claim in claims])
    with database.begin() as connection:
        for job_id, texts in texts_of.items():
            for index, answer in enumerate(texts):
                of_sample = (Result.job_id == job_id, Result.sample_index == index)
                connection.execute(update(Result).where(*of_sample).values(text=answer))


@pytest.mark.parametrize(
    ("custom_id", "grid_point", "prompt_id"),
    [
        ("a#beam,num_beams=4", {"strategy": "beam", "num_beams": 4}, "a"),
        ("a#1#greedy", {"strategy": "greedy"}, "a#1"),
        ("#greedy", {"strategy": "greedy"}, ""),
        ("a#1", None, "a#1"),
        ("ä##temperature=0.5", {"temperature": 0.5}, "ä#"),
        ("plain", {"n": 2}, "plain"),
    ],
)
def test_a_prompt_id_is_the_custom_id_without_what_the_grid_appended(
    sqlite_database: Engine, custom_id: str, grid_point: dict[str, Any] | None, prompt_id: str
) -> None:
    insert_run(sqlite_database, 1)
    change_jobs(sqlite_database, "20261101-000000-abcdef", custom_id=custom_id, grid_point=grid_point)
    assert rows_of(sqlite_database, "select prompt_id from job_results") == [(prompt_id,)]


def user(content: Any) -> User:
    return {"role": "user", "content": content}


CHATS = {
    "one": ([{"role": "system", "content": "be kind"}, user("who?")], "who?"),
    "several": ([user("who?"), {"role": "assistant", "content": "you"}, user("why?")], "why?"),
    "continued": ([user("who?"), {"role": "assistant", "content": "It is"}], "who?"),
    "parts": (
        [user([{"type": "text", "text": "a "}, "b", {"type": "image"}, {"type": "text", "text": " c"}])],
        "a b c",
    ),
    "without a user": ([{"role": "system", "content": "speak"}], "speak"),
    "without content": ([{"role": "user"}], None),
}


def test_columns_that_every_answer_has(database: Engine) -> None:
    params = {"temperature": 0.5, "top_p": 0.9, "strategy": "nucleus"}
    for name in CHATS:
        insert_answers(database, name, [["[1]"]], params=params, grid_point={"n": 1})
        change_jobs(database, name, custom_id="job#n=1", prompt=None, messages=CHATS[name][0])
    insert_answers(database, "plain", [["{"], []])
    found = rows_of(database, "select run_id, asked from job_results where run_id <> 'plain' order by run_id")
    assert dict(found) == {name: asked for name, (_, asked) in CHATS.items()}
    columns = "prompt_id, temperature, top_p, mean_logprob, is_json"
    assert rows_of(database, f"select {columns} from job_results where run_id = 'one'") == [
        ("job", 0.5, 0.9, pytest.approx(-1 / 3), True)
    ]
    plain = rows_of(database, f"select asked, {columns} from job_results where run_id = 'plain' order by job_id")
    assert plain == [
        ("prompt 0", "job-0", None, None, pytest.approx(-1 / 3), False),
        ("prompt 1", "job-1", None, None, None, None),
    ]
    of_tokens = "select distinct run_name, model, prompt_id, temperature, top_p from job_tokens where run_id = 'one'"
    assert rows_of(database, of_tokens) == [(None, "toy", "job", 0.5, 0.9)]


def test_is_json_is_the_same_in_the_views_and_as_a_function(database: Engine) -> None:
    texts = ['{"a": [1, 2]}', "[1", "", "null", " [] ", "plain", '"x"', "[" * 100_000]
    insert_answers(database, "run", [[each] for each in texts])
    reader = open_database(database.url.render_as_string(hide_password=False), read_only=True)
    found = rows_of(reader, "select text, is_json, is_json(text) from job_results order by job_id")
    reader.dispose()
    assert [bool(verdict) for _, verdict, _ in found] == [True, False, False, True, True, False, True, False]
    assert all(verdict == function for _, verdict, function in found)


def test_groups_of_equal_answers(database: Engine) -> None:
    insert_answers(database, "run", [["yes", "no", "yes"], ["yes"]], grid_point={"strategy": "sample"})
    with database.begin() as connection:
        connection.execute(text("update jobs set custom_id = 'a#' || custom_id"))
    columns = "prompt_id, text, num_answers, num_of_prompt, share, first_custom_id"
    assert rows_of(database, f"select {columns} from answer_groups order by num_answers desc") == [
        ("a", "yes", 3, 4, 0.75, "a#job-0"),
        ("a", "no", 1, 4, 0.25, "a#job-0"),
    ]


def test_agreement_of_samples(database: Engine) -> None:
    params = {"strategy": "sample", "temperature": 0.7, "seed": None}
    sampled: dict[str, Any] = {"strategy": "sample", "params": params}
    insert_answers(database, "run", [["yes", "no", "yes", "yes"], ["alone"], ["x", "y"]], **sampled)
    insert_answers(database, "beams", [["yes", "no"]], strategy="beam")
    insert_answers(database, "repeated", [["a"], ["a"]], **sampled, grid_point={"repeat": 1})
    with database.begin() as connection:  # repetitions of one line, with a seed each
        connection.execute(text("update jobs set custom_id = 'p#' || custom_id where run_id = 'repeated'"))
        seeded = "update jobs set params = :params where custom_id = 'p#job-0'"
        connection.execute(text(seeded), {"params": json.dumps({**params, "seed": 5})})
    columns = "run_id, prompt_id, temperature, num_samples, num_distinct, agreement, text"
    assert rows_of(database, f"select {columns} from sample_agreement order by run_id desc, prompt_id") == [
        ("run", "job-0", 0.7, 4, 2, 0.75, "yes"),
        ("run", "job-2", 0.7, 2, 2, 0.5, "x"),
        ("repeated", "p", 0.7, 2, 1, 1.0, "a"),
    ]


def test_runs_compared(database: Engine) -> None:
    insert_answers(database, "before", [["same"], ["old"], [], ["gone"], [], ["a", "b"]])
    insert_answers(database, "after", [["same"], ["new"], ["more"], [], [], ["a", "c"]])
    columns = "custom_id, sample_index, change, text, other_text"
    compared = f"select {columns} from run_comparison where run_id = 'before' and other_run_id = 'after'"
    assert rows_of(database, f"{compared} order by custom_id, sample_index") == [
        ("job-0", 0, "same", "same", "same"),
        ("job-1", 0, "changed", "old", "new"),
        ("job-2", 0, "gained", None, "more"),
        ("job-3", 0, "lost", "gone", None),
        ("job-4", None, "neither", None, None),
        ("job-5", 0, "same", "a", "a"),
        ("job-5", 1, "changed", "b", "c"),
    ]


def test_readers_keep_their_views_and_read_the_new_ones(postgres_url: str) -> None:
    """Grants made once, by nobody's default privileges, and a view of somebody's own."""
    database, url = open_database(postgres_url), make_url(postgres_url)
    role = f"r_{url.database}"
    upgrade(database, "0007")
    with database.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role}")
        connection.exec_driver_sql(f"GRANT SELECT ON job_results, job_tokens TO {role}")
        connection.exec_driver_sql("CREATE VIEW mine AS SELECT custom_id, text FROM job_results")
    upgrade(database)
    views = ("job_results", "job_tokens", "answer_groups", "sample_agreement", "run_comparison")
    with database.begin() as connection:
        connection.exec_driver_sql(f"SET LOCAL ROLE {role}")
        for view in views:
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {view}").scalar() == 0
        assert connection.exec_driver_sql("SELECT is_json('[]')").scalar() is True
    with database.begin() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM mine").scalar() == 0
        connection.exec_driver_sql("DROP VIEW mine")
    downgrade(database, "0007")
    with database.begin() as connection:
        connection.exec_driver_sql(f"SET LOCAL ROLE {role}")
        assert connection.exec_driver_sql("SELECT count(*) FROM job_results").scalar() == 0
    with database.begin() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {role}")
        connection.exec_driver_sql(f"DROP ROLE {role}")
    database.dispose()
