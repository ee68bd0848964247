"""The Celery app alone, so that a producer can send without loading a worker. The task is in `worker.tasks`."""

from __future__ import annotations

from celery import Celery

from models.message import MESSAGE_VERSION, TASK_NAME, ChunkMessage, queue_name
from models.model_name import canonical_model
from models.settings import Settings

DEFAULT_BROKER = "redis://localhost:6379/0"
NUM_PRIORITIES = 10


def create_app(settings: Settings) -> Celery:
    """An app for the settings' broker; a worker of it serves the settings' model."""
    app = Celery("nocturne", broker=settings.broker or DEFAULT_BROKER, include=["worker.tasks"])
    app.conf.update(
        task_default_queue=queue_name(canonical_model(settings.model)),
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
        broker_transport_options={
            "priority_steps": list(range(NUM_PRIORITIES)),
            "queue_order_strategy": "priority",
            "visibility_timeout": settings.visibility_timeout,
            # kombu looks for messages of dead workers every interval * throttle; its own 10 * 10 s are long.
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
        },
    )
    return app


def broker_priority(priority: int) -> int:
    """Kombu's priority on Redis, where 0 goes first; ours are the human way round."""
    return NUM_PRIORITIES - 1 - priority


def send_chunk(app: Celery, chunk: ChunkMessage, priority: int) -> None:
    """Hands a chunk to the broker."""
    app.send_task(
        TASK_NAME,
        args=[chunk.model_dump(mode="json", exclude_unset=True) | {"version": MESSAGE_VERSION}],
        queue=queue_name(chunk.model),
        priority=broker_priority(priority),
    )


app = create_app(Settings())
