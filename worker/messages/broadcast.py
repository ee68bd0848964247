"""Remote control: what Flower and `celery inspect` read is answered, and nothing that changes a worker is done.

Whoever reaches Redis can broadcast. A command is built again from the few fields that were checked, so that patterns,
clocks and reply options of strangers have no effect. Knows no Redis.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, MutableMapping
from typing import Any
from uuid import uuid4

from worker.messages.envelope import MAX_ENVELOPE_CONTAINERS, UnreadableMessage, as_object, read_json

MAX_BROADCAST_BYTES = 64 * 2**10

#: The commands of Celery that read; the names with `dump_` are those of older clients.
READING_COMMANDS = frozenset({
    "active", "active_queues", "clock", "conf", "ping", "query_task", "registered", "reserved", "revoked",
    "scheduled", "stats", "dump_active", "dump_conf", "dump_reserved", "dump_revoked", "dump_schedule", "dump_tasks",
})  # fmt: skip

Command = Callable[..., Any]


def restrict_commands(commands: MutableMapping[str, Command], own: frozenset[str]) -> None:
    """Replaces every command that does not only read, except our own, by one that refuses."""
    for name in set(commands) - READING_COMMANDS - own:
        commands[name] = _refusing(name)


def _refusing(name: str) -> Command:
    def refuse(state: Any, **arguments: Any) -> dict[str, str]:  # noqa: ARG001
        return {"error": f"{name} is not done by remote control; see `worker drain` and `producer pause`"}

    return refuse


def read_broadcast(raw: bytes) -> bytes:
    """A broadcast command as Celery reads one. Raises `UnreadableMessage`."""
    if len(raw) > MAX_BROADCAST_BYTES or raw.count(b"{") + raw.count(b"[") > MAX_ENVELOPE_CONTAINERS:
        raise UnreadableMessage("the broadcast is too large")
    body = as_object(read_json(raw, "the broadcast"), "the broadcast").get("body")
    try:
        decoded = base64.b64decode(body, validate=True) if isinstance(body, str) else b""
    except ValueError as error:
        raise UnreadableMessage(f"the broadcast's body is not base64: {error}") from error
    command = as_object(read_json(decoded, "the broadcast's body"), "the broadcast's body")
    body = base64.b64encode(json.dumps(_checked(command)).encode()).decode()
    envelope = {
        "body": body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {},
        "properties": {"delivery_tag": str(uuid4()), "delivery_info": {}, "body_encoding": "base64"},
    }
    return json.dumps(envelope).encode()


def _checked(command: dict[str, Any]) -> dict[str, Any]:
    """The fields of a command that are taken over. Raises `UnreadableMessage`."""
    match command:
        case {"pattern": str()}:
            raise UnreadableMessage("a broadcast names its workers, and not a pattern")
        case {"method": str(method), "arguments": dict() as arguments}:
            pass
        case _:
            raise UnreadableMessage("the broadcast is not a command with its arguments")
    checked: dict[str, Any] = {"method": method, "arguments": arguments}
    match command.get("destination"):
        case None:
            pass
        case [*names] if all(isinstance(name, str) for name in names):
            checked["destination"] = names
        case _:
            raise UnreadableMessage("the broadcast's destination is not a list of workers")
    match command.get("reply_to"):
        case {"exchange": str(exchange), "routing_key": str(key)} if exchange.endswith(".pidbox"):
            checked["reply_to"] = {"exchange": exchange, "routing_key": key}
            checked["ticket"] = str(command.get("ticket", ""))[:64]
        case None:
            pass
        case _:
            raise UnreadableMessage("the broadcast asks for a reply to another place")
    return checked
