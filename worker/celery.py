"""The Celery app without its task, so that a producer sends messages without loading a worker.

The task is in `worker.tasks`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from celery import Celery
from celery.loaders.app import AppLoader
from kombu.entity import Exchange, Queue
from kombu.exceptions import ChannelError, OperationalError
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from models.database.faults import first_line
from models.message import MESSAGE_VERSION, TASK_NAME, ChunkMessage, SentJob, queue_name, queue_names
from models.model_name import canonical_model
from models.redacted import redacted
from models.settings import Settings
from models.states import NUM_PRIORITIES
from worker.messages.transport import install

install()

#: AMQP's code of a queue that does not exist, which kombu speaks on Redis too.
NOT_FOUND = "404"

DEFAULT_BROKER = "redis://localhost:6379/0"

#: The remote-control command of `notify_workers`; older workers know it by this name.
NOTIFY_COMMAND = "nocturne_look_now"


class IsolatedLoader(AppLoader):  # type: ignore[misc]
    """Imports without the working directory, which Celery's own loader searches first.

    Nor does it read CELERY_CONFIG_MODULE: that is another application's configuration.
    """

    def import_from_cwd(self, module: str, imp: Callable[..., Any] = import_module, package: str | None = None) -> Any:
        return imp(module, package=package)

    def read_configuration(self, env: str = "") -> dict[str, Any]:  # noqa: ARG002
        return {}


def create_app(settings: Settings) -> Celery:
    """An app for the settings' broker; a worker of it serves the settings' model."""
    app = Celery(
        "nocturne",
        broker=settings.broker or DEFAULT_BROKER,
        include=["worker.tasks"],
        loader=IsolatedLoader,
        fixups=[],  # Celery's only one puts the working directory first for Django
    )
    app.conf.update(
        task_default_queue=queue_name(canonical_model(settings.model)),
        task_queues=[_queue(name) for name in queue_names(canonical_model(settings.model))],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_concurrency=settings.concurrency,
        worker_pool="threads",
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=settings.connect_timeout,
        broker_channel_error_retry=True,  # READONLY, LOADING, MISCONF …: an outage too
        worker_consumer="worker.consumer:PatientConsumer",
        broker_transport_options={
            "priority_steps": list(range(NUM_PRIORITIES)),
            "queue_order_strategy": "priority",
            "visibility_timeout": settings.visibility_timeout,
            # kombu restores messages of dead workers every interval * throttle; its default, 10 * 10 s, is long.
            "unacked_restore_interval": min(10.0, settings.visibility_timeout / 5),
            "unacked_restore_throttle": 1,
            **_socket_options(settings),
        },
    )
    return app


def _socket_options(settings: Settings) -> dict[str, Any]:
    """Deadlines for every connection to Redis, the one that waits for messages included."""
    keepalive = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
    known = {getattr(socket, name): value for name, value in keepalive.items() if hasattr(socket, name)}
    return {
        "socket_timeout": settings.redis_timeout,
        "socket_connect_timeout": settings.connect_timeout,
        "socket_keepalive": True,
        "socket_keepalive_options": known,
        "health_check_interval": settings.redis_timeout,
    }


def _queue(name: str) -> Any:
    return Queue(name, Exchange(name), name)  # type: ignore[no-untyped-call]


def broker_priority(priority: int) -> int:
    """Kombu's priority on Redis, where 0 goes first; in ours 9 does."""
    return NUM_PRIORITIES - 1 - priority


def chunk_body(chunk: ChunkMessage) -> dict[str, Any]:
    """The chunk as JSON values; a reader fills in the defaults that are left out."""
    try:
        body = chunk.model_dump(mode="json", exclude_unset=True)
    except ValueError:  # nested too deeply to be shown, by another program: the rows are decoded anyway
        by_id = [SentJob(id=job.id) for job in chunk.jobs]
        body = chunk.model_copy(update={"jobs": by_id}).model_dump(mode="json", exclude_unset=True)
    return body | {"version": MESSAGE_VERSION}


def send_chunk(app: Celery, chunk: ChunkMessage) -> None:
    """Sends a chunk to the broker. Raises `ConnectionError` if it is away or refuses the message."""
    with _broker_errors():
        app.send_task(
            TASK_NAME,
            args=[chunk_body(chunk)],
            queue=queue_name(chunk.model),
            priority=broker_priority(chunk.priority),
            argsrepr=f"({len(chunk.jobs)} jobs of {chunk.run_id},)",  # Celery would print every job for its log
            retry=False,  # the outbox retries
        )


def queue_length(app: Celery, model: str) -> int:
    """The number of messages of every priority and version that wait for a model. Raises `ConnectionError`.

    A Redis that does not say so is not empty: who believed that would send every job again.
    """
    with _broker_errors(), app.pool.acquire(block=True) as connection:  # a new connection costs more than a sweep
        connection.ensure_connection(max_retries=1, timeout=5)
        return sum(_length(connection, name) for name in queue_names(model))


def _length(connection: Any, queue: str) -> int:
    try:
        return int(connection.default_channel.queue_declare(queue, passive=True).message_count)
    except ChannelError as error:
        if str(error.reply_code) != NOT_FOUND:
            raise
        return 0  # the queue does not exist: nothing was ever sent


def notify_workers(app: Celery) -> None:
    """Makes every worker drop its cancelled jobs at once. Raises `ConnectionError`."""
    with _broker_errors():
        app.control.broadcast(NOTIFY_COMMAND)


class BrokerRefused(Exception):
    """Redis refuses the user or the password; the text has its URL without the password, and says what to do."""


def check_broker(app: Celery) -> None:
    """Raises `BrokerRefused` where trying again changes nothing. A Redis that is away is waited for later."""
    try:
        with app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
    except (ChannelError, OperationalError, RedisError, OSError) as error:
        causes = [error, error.__cause__, error.__context__]
        if any(isinstance(each, AuthenticationError | NoPermissionError) for each in causes):
            shown = redacted(str(app.conf.broker_url))
            raise BrokerRefused(f"{shown} refuses: {first_line(error)}; check its user and password") from error


@contextmanager
def _broker_errors() -> Iterator[None]:
    """Turns the errors of kombu and Redis into `ConnectionError` with one line of text."""
    try:
        yield
    except (ChannelError, OperationalError, RedisError, OSError) as error:
        raise ConnectionError(first_line(error)) from error


app = create_app(Settings())
