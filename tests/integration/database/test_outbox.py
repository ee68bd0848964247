"""The outbox sends every committed job, in chunks that suit the run. On both databases."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest
from sqlalchemy import Engine, text, update

from models.database.outbox import MAX_CHUNK_JOBS, chunk_size, send_outbox
from models.message import ChunkMessage
from models.schema.job import Job
from models.states import JobState
from tests.support.table_rows import column_of, insert_run
from worker.celery import chunk_body
from worker.messages.envelope import MAX_MESSAGE_BYTES


class Broker:
    """Keeps the chunks it is sent; breaks after so many."""

    def __init__(self, breaks_after: int | None = None) -> None:
        self.sent: list[ChunkMessage] = []
        self._breaks_after = breaks_after

    def __call__(self, chunk: ChunkMessage) -> None:
        if len(self.sent) == self._breaks_after:
            raise ConnectionError("the broker is gone")
        self.sent.append(chunk)

    @property
    def job_ids(self) -> list[int]:
        return [job.id for chunk in self.sent for job in chunk.jobs]


def test_every_job_is_sent_once_and_in_full(database: Engine) -> None:
    job_ids, broker = insert_run(database, 100), Broker()
    assert send_outbox(database, broker) == 100
    assert broker.job_ids == job_ids
    job = broker.sent[0].jobs[0]
    assert (job.prompt, job.params and job.params["seed"]) == ("prompt 0", 0)
    assert send_outbox(database, broker) == 0
    assert None not in column_of(database, Job.sent_at)


def test_a_broker_that_breaks_leaves_the_rest_for_the_next(database: Engine) -> None:
    job_ids = insert_run(database, 50)
    with pytest.raises(ConnectionError):
        send_outbox(database, Broker(breaks_after=2))
    broker = Broker()
    send_outbox(database, broker)
    assert broker.job_ids == job_ids  # the first ones come twice, which claims make harmless


def test_urgent_jobs_go_first_and_in_chunks_of_their_own(database: Engine) -> None:
    job_ids, broker = insert_run(database, 10), Broker()
    with database.begin() as connection:
        connection.execute(update(Job).where(Job.id == job_ids[7]).values(priority=9))
    send_outbox(database, broker, concurrency=1)
    assert [chunk.priority for chunk in broker.sent][:2] == [9, 5]
    assert broker.job_ids[0] == job_ids[7]


def test_a_suspect_travels_alone(database: Engine) -> None:
    job_ids, broker = insert_run(database, 40), Broker()
    with database.begin() as connection:
        connection.execute(update(Job).where(Job.id == job_ids[5]).values(is_suspect=True))
    send_outbox(database, broker, concurrency=1)
    assert [job_ids[5]] in [[job.id for job in chunk.jobs] for chunk in broker.sent]
    assert sorted(broker.job_ids) == job_ids


@pytest.mark.parametrize(("num_waiting", "num_chunks"), [(640, 2), (0, 32)])
def test_jobs_that_come_back_travel_together_while_others_wait(
    database: Engine, num_waiting: int, num_chunks: int
) -> None:
    """At the end of a run they are shared out among the workers."""
    job_ids, broker = insert_run(database, num_waiting + 32), Broker()
    if num_waiting:
        send_outbox(database, Broker(), concurrency=32)
    with database.begin() as connection:
        connection.execute(update(Job).where(Job.id.in_(job_ids[:32])).values(sent_at=None, attempts=1))
    send_outbox(database, broker, concurrency=32)
    assert (len(broker.sent), broker.job_ids) == (num_chunks, job_ids[:32])


def test_only_what_is_queued_is_sent(database: Engine) -> None:
    job_ids, broker = insert_run(database, 3), Broker()
    with database.begin() as connection:
        connection.execute(update(Job).where(Job.id == job_ids[1]).values(state=JobState.CANCELLED))
    send_outbox(database, broker)
    assert broker.job_ids == [job_ids[0], job_ids[2]]


def test_a_reaper_leaves_fresh_jobs_to_their_submitter(database: Engine) -> None:
    job_ids, broker = insert_run(database, 3), Broker()
    assert send_outbox(database, broker, min_age_seconds=60) == 0
    with database.begin() as connection:
        connection.execute(update(Job).where(Job.id == job_ids[1]).values(attempts=1))
    send_outbox(database, broker, min_age_seconds=60)
    assert broker.job_ids == [job_ids[1]]


@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)  # SQLite locks no rows
def test_jobs_that_a_person_has_locked_are_sent_once_a_sweep(database: Engine) -> None:
    job_ids, broker = insert_run(database, 3), Broker(breaks_after=100)
    with database.connect() as person:
        person.execute(text("SELECT * FROM jobs FOR UPDATE"))
        assert send_outbox(database, broker) == 3
    assert broker.job_ids == job_ids
    assert column_of(database, Job.sent_at) == [None] * 3  # unmarked: the next sweep sends them again


LARGE_JOBS: dict[str, tuple[int, dict[str, Any]]] = {
    "control characters": (1, {"prompt": "\x01" * 3_500_000}),
    "emoji": (2, {"prompt": "😀" * 700_000}),
    "stop tokens": (32, {"params": {"stop_token_ids": list(range(100_000))}}),
    "stop strings": (32, {"params": {"stop": ["夜" * 1_000] * 100}}),
    "a model's defaults": (32, {"params": {"model_defaults": {"bad_words_ids": [[token] for token in range(70_000)]}}}),
}


@pytest.mark.parametrize("kind", LARGE_JOBS)
def test_no_chunk_is_larger_than_a_message_that_workers_read(kind: str, sqlite_database: Engine) -> None:
    """A worker would put it aside, and the jobs would be sent again forever."""
    num_jobs, columns = LARGE_JOBS[kind]
    broker, job_ids = Broker(), insert_run(sqlite_database, num_jobs, **columns)
    send_outbox(sqlite_database, broker, concurrency=1)
    assert broker.job_ids == job_ids
    bodies = [json.dumps([[chunk_body(chunk)], {}, {}]).encode() for chunk in broker.sent]
    assert max(len(b64encode(body)) for body in bodies) < MAX_MESSAGE_BYTES - 10_000


def test_small_runs_are_spread_and_large_ones_travel_together() -> None:
    assert chunk_size(3, num_in_flight=16) == 1
    assert chunk_size(100, num_in_flight=16) == 6
    assert chunk_size(100_000, num_in_flight=16) == MAX_CHUNK_JOBS
