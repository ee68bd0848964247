"""The producer's side of the broker: checking it, sending a run's outbox, notifying workers."""

from __future__ import annotations

from functools import partial

from sqlalchemy import Engine

from models.database.outbox import send_outbox
from models.redacted import check_url, redacted, without_secrets
from models.settings import Settings
from producer.console import say
from producer.errors import UsageError


def check_broker(url: str) -> str | None:
    """The server's name and version, as "Valkey 9.1.2"; None for a server that keeps them to itself.

    Raises `UsageError` unless Redis answers. Call it before anything is written.
    """
    from redis import Redis
    from redis.exceptions import RedisError, ResponseError

    try:
        check_url(url, "redis://host:6379/0")
    except ValueError as error:
        raise UsageError(f"--broker: {error}") from error
    address = url.replace("redis+socket://", "unix://", 1)
    try:
        with Redis.from_url(address, socket_connect_timeout=5, socket_timeout=5) as client:
            client.ping()
            try:
                info = client.info("server")
            except ResponseError:  # a user may be allowed its queues alone
                return None
    except (RedisError, ValueError, TypeError, OSError) as error:
        raise UsageError(
            f"cannot reach Redis at {redacted(url)}: {without_secrets(str(error), url)}; start it, or give --broker, "
            "or use `producer run`, which brings its own"
        ) from error
    if "valkey_version" in info:  # its redis_version is that of the Redis it can stand in for
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}" if "redis_version" in info else None


def notify(settings: Settings) -> None:
    """Tells the workers that jobs were cancelled; otherwise they notice at their next heartbeat."""
    from worker.celery import create_app, notify_workers

    try:
        notify_workers(create_app(settings))
    except ConnectionError as error:
        told = without_secrets(str(error), settings.broker or "")
        say(f"Redis does not answer, so workers notice it at their next heartbeat only: {told}")


def send_run(settings: Settings, database: Engine, run_id: str | None) -> int:
    """Sends the outbox of one run or of all; returns the number of jobs.

    Raises `ConnectionError` when the broker takes no more; unsent jobs stay in the outbox.
    """
    from worker.celery import create_app, send_chunk

    app = create_app(settings)
    return send_outbox(database, partial(send_chunk, app), run_id=run_id, concurrency=settings.concurrency)
