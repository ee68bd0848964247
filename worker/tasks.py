"""The Celery task, and the signals that start and end the worker's runtime.

The only module that knows both Celery and `Runtime`.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import Any

from celery import signals
from celery.exceptions import Reject
from celery.worker.control import Panel, control_command

from migrations.schema_state import check_schema
from models.database.connection import check_connection, open_database
from models.database.faults import DatabaseUnavailable
from models.message import TASK_NAME
from models.model_name import canonical_model
from models.settings import Settings
from worker.celery import NOTIFY_COMMAND, BrokerRefused, app, check_broker, queue_length, send_chunk
from worker.critical_thread import CriticalThread
from worker.engine.request import ModelUnavailable
from worker.messages.broadcast import restrict_commands
from worker.messages.chunk import decoded_text, read_chunk
from worker.messages.dead_letters import BOX
from worker.messages.envelope import UnreadableMessage
from worker.monitoring.json_log import JsonFormatter, note_task, say
from worker.monitoring.worker_state import MetricsUnavailable
from worker.runtime import Runtime
from worker.signals import HURRY_SECONDS, STOP_SECONDS, Stopping
from worker.storage.outages import DatabaseRejection, RetryAborted
from worker.worker_group import REFUSED

logger = logging.getLogger(__name__)

_runtime: Runtime | None = None
_stopping = Stopping()


@app.task(name=TASK_NAME)
def generate(body: str, queue: str) -> None:
    """Decodes the jobs of one message. Returning acknowledges the message, so it returns after the last commit.

    `worker.messages` has checked its envelope and gives its body as it came.
    """
    assert _runtime is not None, "the worker was not initialized"
    if _runtime.is_stopping:
        raise Reject("the worker is stopping", requeue=True)
    try:
        chunk = read_chunk(body)
    except UnreadableMessage as problem:
        # Its jobs, if it has any, stay queued in the database, and are sent again.
        BOX.put(queue, str(problem), decoded_text(body))
        return
    note_task(chunk.run_id)
    try:
        _runtime.process(chunk, queue)
    except RetryAborted as error:
        raise Reject(f"the worker is stopping: {error}", requeue=True) from error


@control_command(name=NOTIFY_COMMAND)
def notify(state: Any) -> None:  # noqa: ARG001
    """Drops cancelled jobs at once instead of at the next heartbeat."""
    if _runtime is not None:
        _runtime.notify()


@signals.after_setup_logger.connect
@signals.after_setup_task_logger.connect
def _format_log(logger: logging.Logger, **kwargs: Any) -> None:  # noqa: ARG001
    settings = Settings()
    if settings.log_format == "json":
        for handler in logger.handlers:
            handler.setFormatter(JsonFormatter(settings.name_of_worker(os.getpid())))


@signals.worker_init.connect
def _start(**kwargs: Any) -> None:  # noqa: ARG001
    global _runtime
    restrict_commands(Panel.data, frozenset({NOTIFY_COMMAND}))
    for name in set(app.tasks) - {TASK_NAME}:
        del app.tasks[name]  # Celery's own
    settings = Settings()
    try:
        database = open_database(settings.database_url, deadlines=settings.deadlines)
        check_connection(database)
        check_schema(database)
        check_broker(app)
        _runtime = Runtime(
            settings,
            database,
            send=partial(send_chunk, app),
            queue_length=partial(queue_length, app, canonical_model(settings.model)),
        )
        _runtime.start()
    except (BrokerRefused, DatabaseUnavailable, MetricsUnavailable, ModelUnavailable) as error:
        say(settings, str(error), logging.ERROR)
        raise SystemExit(2) from error
    except DatabaseRejection as error:
        say(settings, str(error), logging.ERROR)
        raise SystemExit(REFUSED) from error
    except Exception as error:
        # Celery would log it and go on without a runtime.
        logger.exception("the worker could not start")
        raise SystemExit(1) from error


@signals.worker_ready.connect
def _announce(**kwargs: Any) -> None:  # noqa: ARG001
    assert _runtime is not None
    logger.info("%s serves %s on %s", _runtime.name, _runtime.settings.model, _runtime.device)


@signals.worker_shutting_down.connect
def _shut_down(**kwargs: Any) -> None:  # noqa: ARG001
    if _runtime is None:
        return
    is_first = _stopping.note_signal()
    if is_first is None:
        return
    if not is_first:
        _stopping.end_within(HURRY_SECONDS)
        _runtime.hurry()
    else:
        _stopping.end_within(_runtime.grace_seconds + STOP_SECONDS)
        _runtime.stop_claiming()
        # In a thread: the signal arrives in the event loop, which must go on acknowledging messages.
        CriticalThread(target=_runtime.shut_down, name="shut-down", daemon=True).start()


def has_lost_engine() -> bool:
    """Whether the worker stopped because its engine could not be started again."""
    return _runtime is not None and _runtime.has_lost_engine


def rejection() -> str | None:
    """The reason for which the database refused a statement for good, if the worker stopped because of that."""
    return None if _runtime is None else _runtime.rejection


@signals.worker_shutdown.connect
def _close(**kwargs: Any) -> None:  # noqa: ARG001
    if _runtime is not None:
        _runtime.close()
