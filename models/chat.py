"""The parts of a conversation beside its messages, and the rules about messages that producer and worker share.

Knows no template: callers hand over the function that renders one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

from pydantic import BaseModel, ConfigDict

Messages = Sequence[Mapping[str, Any]]


class ChatInputs(BaseModel):
    """The arguments that a chat template gets beside the messages. An empty argument counts as absent."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    tools: list[dict[str, Any]] | None = None  # JSON schemas, as OpenAI's clients write them
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None  # such as enable_thinking

    @cached_property
    def stored(self) -> dict[str, Any] | None:
        """The parts that are not empty, as `jobs.chat` holds them; None where all are."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value} or None


def prompt_hash(token_ids: Sequence[int]) -> str:
    """The hash of the ids that a model sees: equal ids, equal hash."""
    return blake2b(" ".join(map(str, token_ids)).encode(), digest_size=16).hexdigest()


def content_text(content: Any) -> str:
    """The text of a message's content, its parts joined; empty for a message without one."""
    if isinstance(content, list):
        return "".join(part if isinstance(part, str) else part.get("text", "") for part in content)
    return content or ""


def keyed_messages(messages: Messages | None) -> list[dict[str, Any]] | None:
    """The messages as the hashes of jobs cover them: with the parts of each content joined, as version 0.1 did."""
    if messages is None:
        return None
    return [
        {**message, "content": content_text(message["content"])}
        if isinstance(message.get("content"), list)
        else message
        for message in map(dict, messages)
    ]


def is_continued(messages: Messages) -> bool:
    """Whether the answer continues the last message instead of following it."""
    return bool(messages) and messages[-1].get("role") == "assistant"
