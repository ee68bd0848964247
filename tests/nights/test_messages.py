"""Messages of every kind in a queue of ours: each is read, or put aside for good, and the worker goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from celery.worker.request import Request
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from redis.exceptions import BusyLoadingError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import Engine, func, select, update

from migrations.upgrade import upgrade
from models.database.connection import open_database
from models.database.outbox import send_outbox
from models.message import TASK_NAME, ChunkMessage, queue_name
from models.params import GenerationParams
from models.schema.dead_letter import DeadLetter
from models.schema.job import Job
from models.schema.run import Run
from models.settings import Settings
from models.states import JobState, Strategy
from producer.runs.doctor import examine
from producer.runs.prune import prune_runs
from tests.conftest import TOY_MODEL
from tests.nights import hostile
from tests.nights.hostile import (
    BODIES,
    BROADCASTS,
    CHANGING_COMMANDS,
    ENVELOPES,
    HARMLESS,
    MODEL,
    body_of,
    message,
)
from tests.support.processes import HANG_SECONDS, WorkerProcess, wait_until
from tests.support.table_rows import column_of, insert_run
from worker.celery import create_app, queue_length, send_chunk
from worker.messages.broadcast import restrict_commands
from worker.messages.chunk import differences, read_chunk
from worker.messages.dead_letters import BOX, MAX_BEGINNING, MAX_WAITING, DeadLetterBox, Letter
from worker.messages.envelope import UnreadableMessage, celery_view, read_envelope
from worker.messages.transport import CheckedMessage, checked_broadcast, checked_item
from worker.storage.dead_letter_store import MAX_DEAD_LETTERS, DeadLetterStore
from worker.storage.job_store import JobStore

QUEUE = queue_name(MODEL)
KEY = f"{QUEUE}\x06\x163".encode()  # as kombu names the list of a priority


@pytest.fixture(autouse=True)
def empty_box() -> Iterator[None]:
    BOX.take()
    yield
    BOX.take()


@pytest.mark.parametrize(("item", "reason"), [case[1:] for case in ENVELOPES], ids=[case[0] for case in ENVELOPES])
def test_an_envelope_that_is_none_of_ours_is_put_aside(item: bytes, reason: str) -> None:
    assert checked_item(KEY, item) is None
    ((letter,), _) = BOX.take()
    assert reason in letter.reason
    assert (letter.queue, letter.num_bytes) == (QUEUE, len(item))
    assert len(letter.beginning) <= MAX_BEGINNING


@pytest.mark.parametrize(("body", "reason"), [case[1:] for case in BODIES], ids=[case[0] for case in BODIES])
def test_a_body_that_is_no_chunk_is_put_aside(body: str, reason: str) -> None:
    assert celery_arguments(message(body))[0] == body  # Celery itself decodes nothing of it
    with pytest.raises(UnreadableMessage) as raised:
        read_chunk(body)
    assert reason in str(raised.value)


@pytest.mark.parametrize("item", [case[1] for case in HARMLESS], ids=[case[0] for case in HARMLESS])
def test_additions_of_strangers_have_no_effect(item: bytes) -> None:
    request = celery_request(item)
    assert (request.eta, request.expires, request.time_limits, request.name) == (None, None, (None, None), TASK_NAME)
    assert not request.revoked() and len(request.id) <= 64
    assert request.delivery_info["routing_key"] == QUEUE and request.delivery_info["exchange"] == ""
    (body, queue) = request.args
    assert queue == QUEUE and [job.id for job in read_chunk(body).jobs] == [1]
    assert request._payload[2] == {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def celery_request(item: bytes) -> Any:
    """An item of the queue as far as Celery takes it before a task runs."""
    checked = checked_item(KEY, item)
    assert checked is not None
    received = CheckedMessage(json.loads(checked[1]), FakeChannel())
    assert received._raw["properties"]["body_encoding"] == "base64"
    assert UUID(received.delivery_tag) and not received.errors
    app = create_app(Settings(model=MODEL))
    return Request(received, app=app, headers=received.headers, task=app.task(name=TASK_NAME)(no_task))


def no_task(body: str, queue: str) -> None:
    raise AssertionError((body, queue))


class FakeChannel:
    """The part of a channel that a message reads."""

    def decode_body(self, body: str, encoding: str | None) -> str:
        assert encoding is None
        return body


def celery_arguments(item: bytes) -> Any:
    return celery_request(item).args


class RefusingChannel(FakeChannel):
    """A channel of a Redis that answers with an error."""

    no_ack_consumers = ()

    def __init__(self, error: Exception) -> None:
        self._error = error

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:  # noqa: ARG002
        raise self._error

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: ARG002
        raise self._error


@pytest.mark.parametrize(
    "error", [NoPermissionError("NOPERM"), RedisConnectionError("gone"), BusyLoadingError("LOADING"), OSError("cut")]
)
@pytest.mark.parametrize("action", ["ack", "reject"])
def test_an_outage_of_an_acknowledgement_is_one_line(
    error: Exception, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Some are none of kombu's connection errors, and ended the cleaning up after an outage with a traceback."""
    caplog.set_level(logging.INFO)
    checked = checked_item(KEY, HARMLESS[0][1])
    assert checked is not None
    message = CheckedMessage(json.loads(checked[1]), RefusingChannel(error))
    getattr(message, f"{action}_log_error")(logging.getLogger("celery"), (RedisConnectionError, ConnectionError))
    (record,) = caplog.records
    assert record.levelno == logging.INFO and record.exc_info is None and "comes again" in record.getMessage()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.one_of(st.binary(), JSON.map(lambda value: json.dumps(value).encode())))
def test_no_item_of_a_queue_raises(item: bytes) -> None:
    if checked_item(KEY, item) is None:
        assert len(BOX.take()[0]) == 1


@given(
    st.dictionaries(st.sampled_from(["headers", "properties", "body", "content-type", "content-encoding"]), JSON),
    st.dictionaries(st.sampled_from(["task", "id", "compression", "eta", "expires"]), JSON),
    st.dictionaries(st.sampled_from(["delivery_tag", "delivery_info", "priority", "body_encoding"]), JSON),
)
def test_a_message_with_any_fields_is_read_or_put_aside(whole: Any, headers: Any, properties: Any) -> None:
    item = json.dumps(json.loads(message(headers=headers, properties=properties)) | whole).encode()
    try:
        envelope = read_envelope(item, QUEUE)
    except UnreadableMessage:
        return
    assert read_envelope(json.dumps(envelope).encode(), QUEUE)["body"] == envelope["body"]  # as it returns to the queue
    assert json.loads(celery_view(envelope)["body"])[0] == [envelope["body"], QUEUE]


@given(JSON)
def test_any_body_is_a_chunk_or_unreadable(content: Any) -> None:
    for body in (body_of(content), body_of([[content], {}, {}])):
        with pytest.raises(UnreadableMessage):
            read_chunk(body)


@given(st.one_of(st.binary(), JSON.map(lambda value: json.dumps({"body": body_of(value)}).encode())))
def test_no_broadcast_raises(item: bytes) -> None:
    assert checked_broadcast(item) == b""


def test_commands_that_change_a_worker_are_refused() -> None:
    def shut_down(state: Any) -> None:  # noqa: ARG001
        raise AssertionError("it was done")

    commands: dict[str, Any] = {"ping": shut_down, "ours": shut_down, "shutdown": shut_down, "rate_limit": shut_down}
    kept = commands["ping"]
    restrict_commands(commands, frozenset({"ours"}))
    assert commands["ping"] is kept and commands["ours"] is kept
    assert "not done by remote control" in commands["shutdown"](None)["error"]
    assert "rate_limit" in commands["rate_limit"](None, task_name="x", rate_limit="1/h")["error"]


def test_the_box_and_the_table_are_bounded(database: Engine) -> None:
    box = DeadLetterBox()
    for number in range(MAX_WAITING + 50):
        box.put("queue", f"reason {number}\0\ud800", b"\xff\0" * 10_000)
    letters, num_put = box.take()
    assert (len(letters), num_put) == (MAX_WAITING, MAX_WAITING + 50)
    store = DeadLetterStore(database, "worker")
    for _ in range(MAX_DEAD_LETTERS // MAX_WAITING + 1):
        store.add([vars(letter) for letter in letters])
    with database.connect() as connection:
        assert connection.execute(select(func.count()).select_from(DeadLetter)).scalar_one() <= MAX_DEAD_LETTERS
        newest = connection.execute(select(DeadLetter).order_by(DeadLetter.id.desc()).limit(1)).one()
    assert newest.reason == f"reason {MAX_WAITING + 49}\ufffd\\ud800"
    assert (newest.num_bytes, len(newest.beginning)) == (20_000, MAX_BEGINNING)


def test_doctor_shows_dead_letters_and_prune_deletes_old_ones(
    sqlite_database: Engine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    url = sqlite_database.url.render_as_string()
    settings = Settings(database=url, model=str(TOY_MODEL), home=tmp_path)
    DeadLetterStore(sqlite_database, "worker").add([vars(Letter("generate.v2.toy", "old", 1, "x"))])
    with sqlite_database.begin() as connection:
        connection.execute(update(DeadLetter).values(at=datetime.now(UTC) - timedelta(days=40)))
    assert [finding.is_ok for finding in examine(settings) if finding.part == "messages"] == [True]
    DeadLetterStore(sqlite_database, "worker").add([vars(Letter("generate.v2.toy", "its task is another", 1, "x", 7))])
    (finding,) = [finding for finding in examine(settings) if finding.part == "messages"]
    assert not finding.is_ok and finding.message.startswith("2 dead letters; the newest")
    assert "for job 7 in generate.v2.toy: its task is another" in finding.message
    prune_runs(settings, "30d", traces_only=False, is_dry=True, as_json=True)
    said = capsys.readouterr()
    assert json.loads(said.out)["dead_letters"] == 1 and "1 dead letters" in said.err
    prune_runs(settings, "30d", traces_only=True, is_dry=False, as_json=False)
    assert len(column_of(sqlite_database, DeadLetter.id)) == 2
    prune_runs(settings, "30d", traces_only=False, is_dry=False, as_json=False)
    assert column_of(sqlite_database, DeadLetter.reason) == ["its task is another"]


@pytest.mark.parametrize(
    ("name", "forged"),
    [
        ("run_id", {"run_id": "another"}),
        ("model", {"model": "another"}),
        ("priority", {"priority": 9}),
        ("prompt", {"prompt": "forged"}),
        ("messages", {"messages": [{"role": "user", "content": "forged"}]}),
        ("chat", {"chat": {"tools": [{"name": "forged"}]}}),
        ("params.temperature", {"params": {"strategy": "sample", "temperature": 2.0, "seed": 0}}),
        ("params.strategy", {"params": {"strategy": "greedy", "seed": 0}}),
        ("params.seed", {"params": {"strategy": "sample", "temperature": 0.5, "seed": 1}}),
        ("params", {"params": {"strategy": "sample", "temperature": -1.0, "no_such_thing": 1}}),
    ],
)
def test_the_row_is_decoded_whatever_its_message_says(database: Engine, name: str, forged: dict[str, Any]) -> None:
    params = GenerationParams(strategy=Strategy.SAMPLE, temperature=0.5)
    insert_run(database, 2, params=params.stored)
    sent: list[ChunkMessage] = []
    assert send_outbox(database, sent.append) == 2
    honest = sent[0].model_dump(exclude_unset=True)
    whole = {key: value for key, value in forged.items() if key in honest}
    honest["jobs"] = [job.model_dump(exclude_unset=True) for each in sent for job in each.jobs]
    job = honest["jobs"][0] | {key: value for key, value in forged.items() if key not in honest}
    chunk = ChunkMessage.model_validate({**honest, **whole, "jobs": [job, honest["jobs"][1]]})
    claims = JobStore(database, "worker", 30.0, model=MODEL).claim([job.id for job in chunk.jobs])
    assert [claim.job.prompt for claim in claims] == ["prompt 0", "prompt 1"]
    assert [claim.job.params.stored for claim in claims] == [params.stored | {"seed": 0}, params.stored | {"seed": 1}]
    found = list(differences(chunk, claims, MODEL))
    assert [sent.id for sent, _ in found] == [1, 2][: 2 if whole else 1]
    assert found[0][1].startswith(f"{name}: the message says ")


def test_a_message_that_says_less_differs_in_nothing(database: Engine) -> None:
    """As those of 0.1, which knew less, and those of jobs too large for a message."""
    insert_run(database, 1, params=GenerationParams().stored)
    (claim,) = JobStore(database, "worker", 30.0, model=MODEL).claim([1])
    for job in ({"id": 1}, {"id": 1, "prompt": "prompt 0"}, {"id": 1, "params": {"seed": 0}}):
        assert list(differences(ChunkMessage.model_validate(hostile.chunk(jobs=[job])), [claim], MODEL)) == []


def test_jobs_of_another_model_or_database_are_not_claimed(database: Engine) -> None:
    insert_run(database, 1)
    (other,) = insert_run(database, 1, run_id="other", model="another")
    store = JobStore(database, "worker", 30.0, model=MODEL)
    assert [claim.job_id for claim in store.claim([1, other, 999])] == [1]
    assert store.strangers([1, other, 999]) == {
        other: f"job {other} is for another, and this worker serves toy", 999: "job 999 is not in this database",
    }  # fmt: skip
    assert column_of(database, Job.attempts) == [1, 0]


def test_a_row_that_cannot_be_decoded_fails_alone(database: Engine) -> None:
    insert_run(database, 2)
    with database.begin() as connection:
        connection.execute(update(Job).where(Job.id == 1).values(params={"strategy": "of the next version"}))
    assert [claim.job_id for claim in JobStore(database, "worker", 30.0).claim([1, 2])] == [2]
    assert column_of(database, Job.state) == [JobState.FAILED, JobState.RUNNING]
    assert column_of(database, Run.num_failed) == [1]
    assert "params.strategy" in column_of(database, Job.error)[0]


NUM_JOBS = 80


def test_a_worker_goes_on_whatever_it_is_sent(broker: str, redis_server: Any, sqlite_url: str, tmp_path: Path) -> None:
    """One process, one engine: every message is put aside, every command refused, every job done."""
    database = open_database(sqlite_url)
    upgrade(database)
    insert_run(database, NUM_JOBS)
    redis, app = redis_server.client(), create_app(Settings(broker=broker, model=MODEL))
    for index, item in enumerate(hostile_items()):
        redis.lpush(queue_name(MODEL, 1 + index % 2), item)
    redis.hset("unacked", "tag", "[]")
    redis.zadd("unacked_index", {"tag": 1.0})
    with WorkerProcess(
        "--model", MODEL, "--name", "steady", "--database", sqlite_url, "--broker", broker, cwd=tmp_path,
        module="benchmarks.support.null_worker", NULL_TOKENS="1", NOCTURNE_VISIBILITY_TIMEOUT="5",
    ) as worker:  # fmt: skip
        engine = worker.engine
        wait_until(lambda: queue_length(app, MODEL) == 0)
        wait_until(lambda: column_of(database, Job.state, Job.id == 1) == [JobState.SUCCEEDED])
        broadcast_everything(app, redis)
        for key in (QUEUE, "unacked", "unacked_index"):
            redis.delete(key)
            redis.set(key, "no queue at all")
        wait_until(lambda: not redis.exists(QUEUE))
        assert send_outbox(database, lambda chunk: send_chunk(app, chunk)) == NUM_JOBS - 1  # job 1 is done
        wait_until(lambda: set(column_of(database, Job.state)) == {JobState.SUCCEEDED})
        wait_until(lambda: redis.hlen("unacked") == 0)
        inspect = app.control.inspect(timeout=HANG_SECONDS, limit=1)
        ((registered,), (stats,)) = inspect.registered().values(), inspect.stats().values()
        assert registered == [TASK_NAME] and stats["pool"]["max-concurrency"] == 32
        ((queues,),) = [inspect.active_queues().values()]
        assert {queue["name"] for queue in queues} == {queue_name(MODEL, 1), queue_name(MODEL, 2)}
        assert worker.engine.pid == engine.pid and worker.process.poll() is None
        num_put_aside = len(ENVELOPES) + len(BODIES) + 1 + 3  # and the keys
        wait_until(lambda: len(column_of(database, DeadLetter.id)) == num_put_aside)
    reasons = column_of(database, DeadLetter.reason)
    for _, _, reason in [*ENVELOPES, *BODIES]:
        assert any(reason in found for found in reasons), reason
    database.dispose()


def hostile_items() -> list[bytes]:
    bodies = [message(body) for _, body, _ in BODIES]
    return [*(item for _, item, _ in ENVELOPES), *bodies, *(item for _, item in HARMLESS)]


def broadcast_everything(app: Any, redis: Redis) -> None:
    (topic,) = [name for name in redis.pubsub_channels() if b"celery.pidbox" in name] or [b"/0.celery.pidbox"]
    for item in BROADCASTS:
        redis.publish(topic, item)
    for method, arguments in CHANGING_COMMANDS:
        given = json.loads(json.dumps(arguments).replace("@QUEUE@", QUEUE))
        ((answer,),) = [app.control.broadcast(method, given, reply=True, timeout=HANG_SECONDS, limit=1)]
        ((said,),) = [answer.values()]
        assert "not done by remote control" in said["error"], method
