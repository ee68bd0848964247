"""The strict reading of a message's body: base64 of a Celery body with one argument, a chunk of jobs.

Also finds the differences between a message and the rows that it names: the rows decide.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from models.message import READABLE_VERSIONS, ChunkMessage, SentJob
from models.params import GenerationParams
from worker.messages.envelope import UnreadableMessage, read_json
from worker.storage.claims import Claim


def read_chunk(body: str) -> ChunkMessage:
    """The chunk in a message's body. Raises `UnreadableMessage`."""
    try:
        decoded = base64.b64decode(body, validate=True)
    except ValueError as error:
        raise UnreadableMessage(f"its body is not base64: {error}") from error
    match read_json(decoded, "its body"):
        case [[dict() as chunk], dict() as keywords, *_] if not keywords:
            return _checked_chunk(chunk)
    raise UnreadableMessage("its body is not a task's arguments: one chunk and nothing else")


def decoded_text(body: str) -> bytes | str:
    """A body for a person to read: as JSON, where it is base64."""
    try:
        return base64.b64decode(body, validate=True)
    except ValueError:
        return body


def _checked_chunk(chunk: dict[str, Any]) -> ChunkMessage:
    version = chunk.get("version")
    if type(version) is not int or version not in READABLE_VERSIONS:
        readable = " and ".join(map(str, READABLE_VERSIONS))
        raise UnreadableMessage(f"its version is {str(version)[:20]}, and this worker reads {readable}")
    try:
        return ChunkMessage.model_validate(chunk)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the chunk"
        raise UnreadableMessage(f"{place}: {first['msg'].removeprefix('Value error, ')}") from error


def differences(chunk: ChunkMessage, claims: list[Claim], model: str) -> Iterator[tuple[SentJob, str]]:
    """The jobs of a message that differ from their rows, each with the first field that does."""
    rows = {claim.job_id: claim for claim in claims}
    for sent in chunk.jobs:
        if (claim := rows.get(sent.id)) is None:
            continue
        said: list[tuple[str, Any, Any]] = [
            ("run_id", chunk.run_id, claim.run_id),
            ("model", chunk.model, model),
            ("priority", chunk.priority, claim.priority),
            *_content(sent, claim.row),
        ]
        for name, in_message, in_row in said:
            if in_message is not None and in_message != in_row:
                yield sent, f"{name}: the message says {in_message!r:.300}, its row {in_row!r:.300}"
                break


def _content(sent: SentJob, row: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, value in the message and value in the row of all that decides an answer."""
    yield "prompt", sent.prompt, row["prompt"]
    yield "messages", sent.messages, row["messages"]
    yield "chat", sent.chat or None, row["chat"]
    if sent.params is None or sent.params == row["params"]:
        return
    try:
        said = GenerationParams.model_validate(sent.params).stored
    except ValidationError as error:
        yield "params", str(error).splitlines()[-1], "other ones"
        return
    stored = GenerationParams.model_validate(row["params"]).stored
    for name in sorted(said.keys() | stored.keys(), key=lambda name: (name != "strategy", name)):
        yield f"params.{name}", said.get(name, "nothing"), stored.get(name, "nothing")
