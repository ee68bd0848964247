"""The strict reading of a message's envelope: bytes of a queue become a Celery message of ours, or a reason.

Nothing that a stranger wrote reaches Celery: the envelope is built again from the few fields that were checked, so
content types, compression, other tasks, eta, expiry, links and chords of strangers have no effect. Knows no Redis.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

from models.message import TASK_NAME
from models.states import NUM_PRIORITIES

#: A message of ours is far smaller: `models.database.outbox` bounds the chunks that it sends.
MAX_MESSAGE_BYTES = 16 * 2**20

#: Objects and arrays in an envelope; its body is one string.
MAX_ENVELOPE_CONTAINERS = 1_000

#: Callbacks and the like of a Celery message, none of which is taken over.
NO_CALLBACKS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class UnreadableMessage(Exception):
    """The message is not one of ours; the text is the reason."""


def read_envelope(raw: bytes, queue: str) -> dict[str, Any]:
    """A Celery message with the body that came, and headers and properties of our own. Raises `UnreadableMessage`."""
    if len(raw) > MAX_MESSAGE_BYTES:
        raise UnreadableMessage(f"it has {len(raw):,} bytes, and {MAX_MESSAGE_BYTES:,} are the most")
    if raw.count(b"{") + raw.count(b"[") > MAX_ENVELOPE_CONTAINERS:
        raise UnreadableMessage(f"its envelope has more than {MAX_ENVELOPE_CONTAINERS:,} objects and arrays")
    envelope = as_object(read_json(raw, "it"), "it")
    headers = as_object(envelope.get("headers"), "its headers")
    properties = as_object(envelope.get("properties"), "its properties")
    if headers.get("compression"):
        raise UnreadableMessage(f"it is compressed ({_shown(headers['compression'])})")
    _check_equal(envelope.get("content-type"), "application/json", "its content type")
    _check_equal(envelope.get("content-encoding"), "utf-8", "its content encoding")
    _check_equal(properties.get("body_encoding"), "base64", "its body's encoding")
    _check_equal(headers.get("task"), TASK_NAME, "its task")
    body = envelope.get("body")
    if not isinstance(body, str) or not body:
        raise UnreadableMessage("it has no body")
    return _celery_message(body, queue, headers.get("id"), properties.get("priority"))


def celery_view(message: dict[str, Any]) -> dict[str, Any]:
    """The message as Celery gets it: the task's arguments are the body, still encoded, and its queue.

    So Celery decodes nothing of it, and the task's own thread reads it strictly.
    """
    queue = message["properties"]["delivery_info"]["routing_key"]
    body = json.dumps([[message["body"], queue], {}, NO_CALLBACKS])
    return {**message, "body": body, "properties": {**message["properties"], "body_encoding": None}}


def read_json(raw: bytes, name: str) -> Any:
    """The value of JSON in UTF-8. Raises `UnreadableMessage`."""
    try:
        return json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # damage, invalid UTF-8, numbers of a million digits; depth
        raise UnreadableMessage(f"{name} is not JSON: {_shown(str(error))}") from error


def as_object(value: Any, name: str) -> dict[str, Any]:
    """The value, if it is a JSON object. Raises `UnreadableMessage`."""
    if not isinstance(value, dict):
        raise UnreadableMessage(f"{name} must be an object, got {_shown(value)}")
    return value


def _celery_message(body: str, queue: str, task_id: Any, priority: Any) -> dict[str, Any]:
    is_id = isinstance(task_id, str) and task_id.isascii() and task_id.isprintable() and len(task_id) <= 64
    is_priority = type(priority) is int and 0 <= priority < NUM_PRIORITIES
    return {
        "body": body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
            "lang": "py",
            "task": TASK_NAME,
            "id": task_id if is_id and task_id else str(uuid4()),
            "argsrepr": f"({len(body)} characters,)",
        },
        "properties": {
            "delivery_tag": str(uuid4()),  # a stranger's could be that of another message in flight
            "delivery_info": {"exchange": "", "routing_key": queue},  # where it returns to
            "priority": priority if is_priority else NUM_PRIORITIES - 1,
            "body_encoding": "base64",
        },
    }


def _check_equal(value: Any, wanted: str, name: str) -> None:
    if value != wanted:
        raise UnreadableMessage(f"{name} must be {wanted}, got {_shown(value)}")


def _shown(value: Any) -> str:
    """The value for a reason, at most 100 characters of it."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else f"{text[:99]}…"
