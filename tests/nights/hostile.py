"""Messages that a stranger puts into a queue, by what is wrong with each, and commands that he broadcasts."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import zlib
from typing import Any

from models.message import MAX_MESSAGE_JOBS, MESSAGE_VERSION, TASK_NAME
from tests.support.table_rows import RUN_ID
from worker.messages.envelope import MAX_MESSAGE_BYTES

MODEL = "toy"
Json = Any


def chunk(**changes: Json) -> dict[str, Json]:
    """A chunk that names job 1, with changes; a field that becomes None is left out."""
    whole = {
        "version": MESSAGE_VERSION, "run_id": RUN_ID, "model": MODEL, "priority": 5, "jobs": [{"id": 1}],
        **changes,
    }  # fmt: skip
    return {name: value for name, value in whole.items() if value is not None}


def body_of(content: Json) -> str:
    return base64.b64encode(json.dumps(content).encode()).decode()


def task_body(*arguments: Json, **embedded: Json) -> str:
    """The body of a Celery message: the task's arguments, and its callbacks."""
    return body_of([list(arguments), {}, embedded])


def message(body: Json = None, *, headers: Json = None, properties: Json = None, **changes: Json) -> bytes:
    """A message with that body; `headers`, `properties` and fields of the envelope are changed."""
    envelope: dict[str, Json] = {
        "body": task_body(chunk()) if body is None else body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"lang": "py", "task": TASK_NAME, "id": "6f1c", **(headers or {})},
        "properties": {
            "correlation_id": "6f1c", "delivery_info": {"exchange": "", "routing_key": "generate.v2.toy"},
            "delivery_tag": "tag", "body_encoding": "base64", "priority": 4, **(properties or {}),
        },
        **changes,
    }  # fmt: skip
    return json.dumps(envelope).encode()


def compressed(compress: Any, name: str) -> bytes:
    """A body that unfolds to more than it weighs."""
    body = base64.b64encode(compress(b'[[{"jobs": [' + b"1," * 3_000_000 + b"1]}], {}, {}]")).decode()
    return message(body, headers={"compression": name})


DEEP = b"[" * 200_000 + b"]" * 200_000

#: Refused by the envelope: the name, the item of the queue, and a part of the reason.
ENVELOPES: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "not JSON"),
    ("garbage", b"garbage", "not JSON"),
    ("bytes", b"\xff\xfe\x00", "not JSON"),
    ("utf-16", json.dumps({"headers": {}}).encode("utf-16"), "not JSON"),
    ("a long number", b'{"body": ' + b"9" * 100_000 + b"}", "not JSON"),
    ("an array", b"[]", "must be an object, got an array"),
    ("a number", b"7", "must be an object, got 7"),
    ("null", b"null", "must be an object, got null"),
    ("an object", b"{}", "its headers must be an object"),
    ("deep", DEEP, "objects and arrays"),
    ("wide", b"[" + b"{}," * 100_000 + b"{}]", "objects and arrays"),
    ("large", b'{"body": "' + b"A" * MAX_MESSAGE_BYTES + b'"}', "bytes, and"),
    ("an array of headers", message(headers=None).replace(b'"headers": {', b'"headers": [], "h": {'), "its headers"),
    ("properties that are none", message().replace(b'"properties": {', b'"properties": 1, "p": {'), "its properties"),
    ("gzip", compressed(gzip.compress, "application/x-gzip"), "it is compressed (application/x-gzip)"),
    ("zlib", compressed(zlib.compress, "zlib"), "it is compressed (zlib)"),
    ("bzip2", compressed(bz2.compress, "bzip2"), "it is compressed (bzip2)"),
    ("a compression that is an array", message(headers={"compression": ["gzip"]}), "it is compressed (an array)"),
    ("pickle", message(**{"content-type": "application/x-python-serialize"}), "its content type"),
    ("yaml", message(**{"content-type": "application/x-yaml"}), "its content type"),
    ("no content type", message(**{"content-type": None}), "its content type"),
    ("a content type that is an array", message(**{"content-type": []}), "its content type"),
    ("binary", message(**{"content-encoding": "binary"}), "its content encoding"),
    ("rot13", message(**{"content-encoding": "rot13"}), "its content encoding"),
    ("a body that is not encoded", message(properties={"body_encoding": None}), "its body's encoding"),
    ("a body in another encoding", message(properties={"body_encoding": "uu"}), "its body's encoding"),
    ("another task", message(headers={"task": "celery.chord_unlock"}), "its task must be nocturne.generate"),
    ("a task that is an object", message(headers={"task": {}}), "its task"),
    ("protocol 1", message(headers={"task": None}), "its task must be nocturne.generate, got null"),
    ("no body", message(body=""), "it has no body"),
    ("a body that is an object", message(body={"__type__": [], "__value__": 1}), "it has no body"),
]  # fmt: skip

#: Refused by the task: the body, and a part of the reason.
BODIES: list[tuple[str, str, str]] = [
    ("not base64", "§", "not base64"),
    ("broken base64", "AAA", "not base64"),
    ("not JSON", base64.b64encode(b"\x80abc").decode(), "not JSON"),
    ("an empty array", body_of([]), "not a task's arguments"),
    ("no arguments", body_of([[], {}, {}]), "not a task's arguments"),
    ("an object", body_of({"task": TASK_NAME, "args": [chunk()], "kwargs": {}}), "not a task's arguments"),
    ("two arguments", task_body(chunk(), chunk()), "not a task's arguments"),
    ("keywords", body_of([[chunk()], {"x": 1}, {}]), "not a task's arguments"),
    ("text", task_body("chunk"), "not a task's arguments"),
    ("deep", base64.b64encode(DEEP).decode(), "not JSON"),
    ("no version", task_body(chunk(version=None)), "its version is None"),
    ("a newer version", task_body(chunk(version=MESSAGE_VERSION + 1)), "its version is 3, and"),
    ("a version that is true", task_body(chunk(version=True)), "its version is True"),
    ("a version that is an array", task_body(chunk(version=[2])), "its version is [2]"),
    ("no jobs", task_body(chunk(jobs=[])), "jobs: "),
    ("jobs that are none", task_body(chunk(jobs={"id": 1})), "jobs: "),
    ("300,000 ids", task_body(chunk(jobs=[{"id": n} for n in range(1, 300_001)])), f"at most {MAX_MESSAGE_JOBS}"),
    ("a job twice", task_body(chunk(jobs=[{"id": 1}, {"id": 2}, {"id": 1}])), "a job comes twice"),
    ("id 0", task_body(chunk(jobs=[{"id": 0}])), "jobs.0.id"),
    ("a negative id", task_body(chunk(jobs=[{"id": -1}])), "jobs.0.id"),
    ("an id of 20 digits", task_body(chunk(jobs=[{"id": 2**63}])), "jobs.0.id"),
    ("an id that is text", task_body(chunk(jobs=[{"id": "1"}])), "jobs.0.id"),
    ("an id that is true", task_body(chunk(jobs=[{"id": True}])), "jobs.0.id"),
    ("an id with a fraction", task_body(chunk(jobs=[{"id": 1.5}])), "jobs.0.id"),
    ("a job without an id", task_body(chunk(jobs=[{"prompt": "x"}])), "jobs.0.id"),
    ("a prompt that is a number", task_body(chunk(jobs=[{"id": 1, "prompt": 5}])), "jobs.0.prompt"),
    ("messages that are text", task_body(chunk(jobs=[{"id": 1, "messages": "hello"}])), "jobs.0.messages"),
    ("params that are an array", task_body(chunk(jobs=[{"id": 1, "params": []}])), "jobs.0.params"),
    ("a run that is a number", task_body(chunk(run_id=7)), "run_id"),
    ("a model that is null", task_body(chunk(model=None)), "model"),
    ("a priority of 10", task_body(chunk(priority=10)), "priority"),
]  # fmt: skip

#: Taken as if nothing were wrong: what a stranger added has no effect.
HARMLESS: list[tuple[str, bytes]] = [
    ("as it should be", message()),
    ("an eta in a year", message(headers={"eta": "2127-01-01T00:00:00+00:00"})),
    ("an eta that is none", message(headers={"eta": "tomorrow"})),
    ("expired long ago", message(headers={"expires": "2001-01-01T00:00:00+00:00"})),
    ("an expiry that is none", message(headers={"expires": {}})),
    ("a link", message(task_body(chunk(), callbacks=[{"task": TASK_NAME, "args": [1], "kwargs": {}, "options": {}}]))),
    ("an errback", message(task_body(chunk(), errbacks=[5]))),
    ("a chord", message(task_body(chunk(), chord={"task": "celery.chord_unlock"}))),
    ("a chain", message(task_body(chunk(), chain=["x"]))),
    ("a time limit", message(headers={"timelimit": [0.001, 0.001]})),
    ("retries", message(headers={"retries": "many", "group": 7, "stamps": 5, "stamped_headers": 3})),
    ("no id", message(headers={"id": None})),
    ("an id of a million characters", message(headers={"id": "x" * 1_000_000})),
    ("a delivery tag that is an object", message(properties={"delivery_tag": {}})),
    ("another queue to return to", message(properties={"delivery_info": {"exchange": "x", "routing_key": "y"}})),
    ("no delivery info", message(properties={"delivery_info": None})),
    ("a priority that is text", message(properties={"priority": "high"})),
    ("a reply to somewhere", message(properties={"reply_to": "generate.v2.toy", "correlation_id": []})),
]  # fmt: skip

#: Commands that change a worker of Celery, with arguments that would.
CHANGING_COMMANDS: list[tuple[str, dict[str, Json]]] = [
    ("rate_limit", {"task_name": TASK_NAME, "rate_limit": "1/h"}),
    ("cancel_consumer", {"queue": "@QUEUE@"}),
    ("add_consumer", {"queue": "generate.v2.other"}),
    ("shutdown", {}),
    ("pool_shrink", {"n": 31}),
    ("pool_grow", {"n": 1000}),
    ("pool_restart", {}),
    ("autoscale", {"max": 1, "min": 1}),
    ("revoke", {"task_id": ["@ID@"], "terminate": True, "signal": "SIGKILL"}),
    ("revoke_by_stamped_headers", {"headers": {"x": ["y"]}, "terminate": True}),
    ("terminate", {"task_id": ["@ID@"], "signal": "SIGKILL"}),
    ("time_limit", {"task_name": TASK_NAME, "hard": 0.001, "soft": 0.001}),
    ("enable_events", {}),
    ("hello", {"from_node": "x", "revoked": {"@ID@": 1}}),
    ("election", {"id": 1, "topic": "x", "action": "y"}),
    ("objgraph", {}),
    ("memdump", {}),
]

#: Commands that are none, or that ask for more than an answer.
COMMANDS: list[Json] = [
    [], {}, {"method": []}, {"method": "ping", "arguments": []},
    {"method": "ping", "arguments": {}, "reply_to": 1}, {"method": "ping", "arguments": {}, "destination": 5},
    {"method": "ping", "arguments": {}, "unknown": 1}, {"method": "ping", "arguments": {"x": 1, "state": 2}},
    {"method": "ping", "arguments": {}, "pattern": "(.*)*(.*)*(.*)*x", "matcher": "pcre"},
    {"method": "ping", "arguments": {}, "reply_to": {"exchange": "", "routing_key": "generate.v2.toy"}},
    {"method": "no_such_command", "arguments": {}},
]  # fmt: skip

#: Broadcasts of these, and some that hold no command.
BROADCASTS: list[bytes] = [
    b"", b"[]", b"garbage", b"\xff", b"{}", DEEP, b'{"body": []}', b'{"body": "AAA"}',
    *(json.dumps({"body": body_of(command), "headers": [], "properties": 1}).encode() for command in COMMANDS),
]  # fmt: skip
