"""The outbox: jobs that are committed and whose message is not known to be sent.

Jobs are marked sent after sending: a crash in between duplicates a message, which claims make harmless; it never
loses one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import ValidationError
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    and_,
    func,
    not_,
    or_,
    select,
    text,
    tuple_,
    update,
)  # fmt: skip

from models.database.backoff import is_due
from models.database.clock import database_timestamp, is_older_than
from models.database.id_lists import are_named
from models.database.live_workers import chunks_in_flight, num_running
from models.message import ChunkMessage, SentJob
from models.schema.job import Job, rows_to_change
from models.schema.run import Run
from models.settings import DEFAULT_CONCURRENCY
from models.states import NUM_PRIORITIES, JobState, RunState, clamped_priority

MAX_CHUNK_JOBS = 32

#: Jobs read from the database at once.
PAGE_JOBS = 2_000

#: The most bytes of JSON: of a chunk's jobs, unless its first alone has more, and of one job that a message shows.
MAX_CHUNK_BYTES = 2**20
MAX_SHOWN_BYTES = 4 * 2**20

#: Hands one chunk to the broker; raises `ConnectionError` where it is not taken.
Send = Callable[[ChunkMessage], None]


def send_outbox(
    database: Engine,
    send: Send,
    *,
    run_id: str | None = None,
    concurrency: int = DEFAULT_CONCURRENCY,
    min_age_seconds: float | None = None,
) -> int:
    """Sends every unsent job that is due, of one run or of all; returns their number.

    A paused run's jobs stay. Of a run with a bound on the jobs that run at once, as many are sent as there is room
    for, whoever submitted them; workers ask again as jobs end. Chunks shrink towards the end of a run, so that the
    workers, which hold `concurrency` of them each, finish together; what lost workers left in the middle of a run
    goes out in whole chunks again. With `min_age_seconds` a job that was never tried
    is left to its submitter for so long.
    """
    num_sent = 0
    for limited, room in _limited_runs(database, run_id):
        num_sent += _send_all(database, send, and_(_IS_UNSENT, Job.run_id == limited), concurrency, room)
    if run_id is None:
        condition = _IS_OPEN
    elif _is_closed(database, run_id):
        return num_sent
    else:
        condition = and_(_IS_OPEN, Job.run_id == run_id)
    if min_age_seconds is not None:
        condition = and_(condition, or_(is_older_than(Job.created_at, min_age_seconds), Job.attempts > 0))
    return num_sent + _send_all(database, send, condition, concurrency)


#: Made once, as the other parts of statements here: every sweep of every worker asks.
_IS_UNSENT = and_(Job.state == JobState.QUEUED, Job.sent_at.is_(None), is_due())

#: The runs whose jobs do not go out as they come. A list of them, as a plan must not begin with the open ones: it would
#: read all their jobs, sent ones too.
_CLOSED_RUNS = select(Run.id).where(
    Run.state == RunState.RUNNING, or_(Run.paused_at.is_not(None), Run.max_running.is_not(None))
)
_IS_OPEN = and_(_IS_UNSENT, Job.run_id.not_in(_CLOSED_RUNS))

_PAGE = (
    select(
        Job.id, Job.run_id, Job.prompt, Job.messages, Job.chat, Job.params, Job.seed, Job.priority, Job.is_suspect,
        select(Run.model).where(Run.id == Job.run_id).correlate(Job).scalar_subquery().label("model"),
    )
    .order_by(Job.run_id, Job.id)
)  # fmt: skip

#: The conditions on jobs, in the order of sending; the last is for priorities that another program has written.
_PRIORITIES = (
    *((priority, Job.priority == priority) for priority in reversed(range(NUM_PRIORITIES))),
    (None, not_(Job.priority.between(0, NUM_PRIORITIES - 1))),
)


def _send_all(
    database: Engine, send: Send, condition: ColumnElement[bool], concurrency: int, most: int | None = None
) -> int:
    """Sends the jobs that meet the condition, the most urgent first, at most so many; returns their number."""
    counts = _count_by_priority(database, condition) if most is None else None
    num_left = most or 0 if counts is None else sum(counts.values())  # no count of a whole run for the few of it
    if not num_left:
        return 0
    num_sent = 0
    num_in_flight = chunks_in_flight(database, concurrency)
    num_waiting: dict[str, int] = {}  # of each run, the jobs that were sent before
    for priority, has_priority in _PRIORITIES:
        if counts is not None and priority not in counts:
            continue
        of_priority = rest = and_(condition, has_priority)
        room = PAGE_JOBS if most is None else most - num_sent
        while room and (page := _read_page(database, rest, min(PAGE_JOBS, room))):
            if most is None:
                for run in {row.run_id for row in page} - num_waiting.keys():
                    num_waiting[run] = _count_waiting(database, run, MAX_CHUNK_JOBS * num_in_flight)
            for chunk in _chunks(page, max(num_left - num_sent, len(page)), num_in_flight, num_waiting):
                send(chunk)
            _mark_sent(database, [row.id for row in page])
            num_sent += len(page)
            room = PAGE_JOBS if most is None else most - num_sent
            # By key: jobs that somebody else has locked cannot be marked, and must not be sent again and again.
            rest = and_(of_priority, tuple_(Job.run_id, Job.id) > (page[-1].run_id, page[-1].id))
    return num_sent


def chunk_size(num_left: int, num_in_flight: int) -> int:
    """Guided self-scheduling: an even share of the jobs left for each chunk in flight, within bounds.

    A smaller share would starve the engine: a chunk stays in flight until its longest job has ended.
    """
    return max(1, min(MAX_CHUNK_JOBS, num_left // num_in_flight))


def _limited_runs(database: Engine, run_id: str | None) -> list[tuple[str, int]]:
    """The open runs with a bound on the jobs that run at once, each with the number that may be sent now."""
    limited = select(Run.id, Run.max_running).where(
        Run.max_running.is_not(None), Run.paused_at.is_(None), Run.state == RunState.RUNNING
    )
    with database.begin() as connection:
        runs = connection.execute(limited if run_id is None else limited.where(Run.id == run_id)).all()
        rooms = [(run, (most or 0) - num_out(connection, run)) for run, most in runs]
    return [(run, room) for run, room in rooms if room > 0]


def _is_closed(database: Engine, run_id: str) -> bool:
    with database.begin() as connection:
        return connection.execute(_CLOSED_RUNS.where(Run.id == run_id)).first() is not None


#: In plain text: SQLite compares the condition of a partial index with the statement's.
_IS_WAITING = text("state = 'queued' AND sent_at IS NOT NULL")


def num_out(connection: Connection, run_id: str) -> int:
    """The jobs of a run that run, or whose message is on its way."""
    sent = select(func.count()).select_from(Job).where(Job.run_id == run_id, _IS_WAITING)
    return num_running(connection, run_id) + connection.execute(sent).scalar_one()


def _count_waiting(database: Engine, run_id: str, most: int) -> int:
    """The jobs of a run whose message is on its way; counts to `most` at most."""
    waiting = select(Job.id).where(Job.run_id == run_id, _IS_WAITING).limit(most).subquery()
    with database.begin() as connection:
        return connection.execute(select(func.count()).select_from(waiting)).scalar_one()


def _read_page(database: Engine, condition: ColumnElement[bool], num_jobs: int) -> list[Row[Any]]:
    with database.begin() as connection:
        return list(connection.execute(_PAGE.where(condition).limit(num_jobs)))


def _mark_sent(database: Engine, job_ids: list[int]) -> None:
    with database.begin() as connection:
        # A job that a worker is just claiming needs no mark.
        unclaimed = rows_to_change(are_named(job_ids, JobState.QUEUED), skip_locked=True)
        connection.execute(update(Job).where(unclaimed).values(sent_at=database_timestamp()))


def _count_by_priority(database: Engine, condition: ColumnElement[bool]) -> Counter[int | None]:
    """The number of jobs of each priority; those of an invalid one count under None."""
    statement = select(Job.priority, func.count()).where(condition).group_by(Job.priority)
    counts: Counter[int | None] = Counter()
    with database.begin() as connection:
        for priority, count in connection.execute(statement):
            counts[priority if priority in range(NUM_PRIORITIES) else None] += count
    return counts


def _chunks(
    rows: list[Row[Any]], num_left: int, num_in_flight: int, num_waiting: dict[str, int]
) -> Iterator[ChunkMessage]:
    """A page's rows in chunks. `num_left` rows, these included, are unsent; `num_waiting` is by run, of those sent."""
    start = 0
    while start < len(rows):
        first = rows[start]
        left_of_run = num_left - start + num_waiting.get(first.run_id, 0)
        size = 1 if first.is_suspect else chunk_size(left_of_run, num_in_flight)
        num_bytes = _num_bytes(first)
        jobs = [_sent_job(first, num_bytes)]
        for row in rows[start + 1 : start + size]:
            if not _travels_with(first, row):
                break
            num_bytes += (own_bytes := _num_bytes(row))
            if num_bytes > MAX_CHUNK_BYTES:
                break
            jobs.append(_sent_job(row, own_bytes))
        priority = clamped_priority(first.priority)
        yield ChunkMessage(run_id=first.run_id, model=first.model, priority=priority, jobs=jobs)
        start += len(jobs)


def _travels_with(first: Row[Any], other: Row[Any]) -> bool:
    """Whether two jobs fit one chunk: a chunk has one run and one priority, and a suspect travels alone."""
    is_as_urgent = clamped_priority(first.priority) == clamped_priority(other.priority)
    return first.run_id == other.run_id and is_as_urgent and not other.is_suspect


def _num_bytes(row: Row[Any]) -> int:
    """The size of a job's content in a message; one byte too many for a content that no message can show."""
    if not isinstance(row.params, dict) or (row.prompt is None and row.messages is None):
        return MAX_SHOWN_BYTES + 1
    return len(json.dumps([row.prompt, row.messages, row.chat, row.params]))


def _sent_job(row: Row[Any], num_bytes: int) -> SentJob:
    """The job as its message shows it: by its id alone where the content is too large or invalid."""
    if num_bytes > MAX_SHOWN_BYTES:
        return SentJob(id=row.id)
    params = {**row.params, "seed": row.seed}
    given = {"prompt": row.prompt, "messages": row.messages, "chat": row.chat}
    try:
        return SentJob(id=row.id, params=params, **{name: value for name, value in given.items() if value is not None})
    except ValidationError:  # another program has written the row
        return SentJob(id=row.id)
