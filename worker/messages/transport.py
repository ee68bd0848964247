"""Kombu's Redis transport with a strict reading between Redis and Celery.

Kombu parses what it takes from a queue before anything can catch an error, so a string that is none of its messages
ends the worker, or comes back with every start. Here each item is checked as it leaves the connection.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from redis import Redis
from redis.client import PubSub
from redis.exceptions import RedisError, ResponseError

from models.message import TASK_NAME
from worker.messages.broadcast import read_broadcast
from worker.messages.dead_letters import BOX
from worker.messages.envelope import UnreadableMessage, as_object, celery_view, read_envelope, read_json

logger = logging.getLogger(__name__)

#: The beginning of the names of queues that hold chunks.
JOB_QUEUES = "generate."


def install() -> None:
    """Makes Celery use this transport for the URLs of a Redis server."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"


class CheckedRedis(Redis):
    """Hands out what `BRPOP` returns only where it is a message of ours; the rest become dead letters."""

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        response = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name != "BRPOP" or not response:
            return response
        key, raw = response
        return checked_item(key, raw)

    def pubsub(self, **options: Any) -> CheckedPubSub:
        return CheckedPubSub(self.connection_pool, **options)


class CheckedPubSub(PubSub):
    """Hands out broadcasts only where they are commands for workers."""

    def parse_response(self, *arguments: Any, **options: Any) -> Any:
        response = super().parse_response(*arguments, **options)  # type: ignore[no-untyped-call]
        if isinstance(response, list | tuple) and response and response[0] in (b"message", b"pmessage"):
            return [*response[:-1], checked_broadcast(response[-1])]
        return response


class CheckedMessage(virtual.Message):
    """A message as Celery gets it; `_raw`, which returns to the queue when a worker is lost, stays as it came."""

    def __init__(self, payload: dict[str, Any], channel: Any = None, **options: Any) -> None:
        is_chunk = payload["headers"].get("task") == TASK_NAME
        super().__init__(celery_view(payload) if is_chunk else payload, channel=channel, **options)  # type: ignore[no-untyped-call]
        self._raw = payload

    def ack_log_error(self, logger: logging.Logger, errors: Any, multiple: bool = False) -> None:
        with _comes_again("acknowledged", logger, errors):
            self.ack(multiple=multiple)  # type: ignore[no-untyped-call]

    def reject_log_error(self, logger: logging.Logger, errors: Any, requeue: bool = False) -> None:
        with _comes_again("rejected", logger, errors):
            self.reject(requeue=requeue)  # type: ignore[no-untyped-call]


@contextmanager
def _comes_again(action: str, logger: logging.Logger, errors: Any) -> Iterator[None]:
    """Tells an outage in a line, where kombu tells it with a traceback for each message.

    A refusal (`NOPERM`) is none of kombu's connection errors, and would end the cleaning up after an outage.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (*errors, RedisError, OSError) as error:
        logger.info("a message could not be %s, and comes again: %s", action, error)


class CheckedQoS(redis.QoS):
    """Drops foreign items among the messages that wait for their acknowledgement, and survives a failed one."""

    def append(self, message: Any, delivery_tag: str) -> None:
        try:
            with self.channel.without_foreign_keys():
                super().append(message, delivery_tag)  # type: ignore[no-untyped-call]
        except Empty:
            super().append(message, delivery_tag)  # type: ignore[no-untyped-call]

    def ack(self, delivery_tag: str) -> None:
        try:
            with self.channel.without_foreign_keys():
                super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        except Empty:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]
        except (RedisError, OSError):
            # It will come again, and its claim find nothing; until then it must not take a place of those in flight.
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]
            raise

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        try:
            with suppress(Empty), self.channel.without_foreign_keys():
                super().restore_by_tag(tag, client, leftmost)  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, RecursionError) as error:
            BOX.put(self.unacked_key, f"it cannot be restored: {error}", str(tag))
            self._remove_from_indices(tag).execute()  # type: ignore[no-untyped-call]


class Channel(redis.Channel):
    """A channel whose connections hand out checked messages."""

    QoS = CheckedQoS
    Message = CheckedMessage

    def _get_client(self) -> type[CheckedRedis]:
        return CheckedRedis

    def _brpop_read(self, **options: Any) -> Any:
        with self.without_foreign_keys():
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]

    @contextmanager
    def without_foreign_keys(self) -> Iterator[None]:
        """Deletes keys of ours that hold something else, where that is what Redis complains of. Raises `Empty` then."""
        try:
            yield
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            self._delete_foreign_keys()
            raise Empty from error

    def _delete_foreign_keys(self) -> None:
        wanted = dict.fromkeys(
            (self._q_for_pri(queue, step) for queue in self.active_queues for step in self.priority_steps),  # type: ignore[no-untyped-call]
            b"list",
        )
        wanted |= {self.unacked_key: b"hash", self.unacked_index_key: b"zset"}
        with self.conn_or_acquire() as client:
            for key, kind in wanted.items():
                if (found := client.type(key)) not in (kind, b"none"):
                    BOX.put(key, f"the key holds a {found.decode()}, and not a {kind.decode()}", b"")
                    client.delete(key)


class Transport(redis.Transport):
    """Redis with checked messages."""

    Channel = Channel


def checked_item(key: bytes, raw: bytes) -> tuple[bytes, bytes] | None:
    """The key and the message that Celery gets for an item of a queue; None where it gets nothing."""
    queue = key.decode("utf-8", "backslashreplace").rsplit(redis.Channel.sep, 1)[0]
    try:
        if queue.startswith(JOB_QUEUES):
            return key, json.dumps(read_envelope(raw, queue)).encode()
        _check_reply(raw)
    except UnreadableMessage as problem:
        BOX.put(queue, str(problem), raw)
        return None
    return key, raw


def checked_broadcast(raw: Any) -> bytes:
    """The command that Celery gets for a broadcast; empty where it gets none."""
    try:
        return read_broadcast(raw)
    except UnreadableMessage as problem:
        logger.warning("a broadcast was dropped: %s", problem)
        return b""


def _check_reply(raw: bytes) -> None:
    """Raises `UnreadableMessage` for an answer to `celery inspect` that kombu could not take apart."""
    envelope = as_object(read_json(raw, "it"), "it")
    as_object(envelope.get("headers"), "its headers")
    properties = as_object(envelope.get("properties"), "its properties")
    as_object(properties.get("delivery_info"), "its delivery info")
    if "delivery_tag" not in properties:
        raise UnreadableMessage("it has no delivery tag")
