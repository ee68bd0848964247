"""A conversation as the text that the model sees: its chat template, rendered by Transformers' own renderer.

Transformers is loaded by the process that renders, not here.
"""

from __future__ import annotations

import re
from datetime import datetime

from models.chat import ChatInputs, Messages
from models.chat_rendering import ChatRefused, ChatRenderer
from models.chat_template import bounded_chat, chosen_template
from producer.model_files.folder import ModelFiles

__all__ = ["ChatRefused", "chat_renderer", "chat_template", "render_chat", "unknown_arguments"]


def chat_renderer(files: ModelFiles) -> ChatRenderer:
    """The renderer of conversations for one model, which the worker's own equals."""

    def render(messages: Messages, inputs: ChatInputs, clock: datetime, is_continued: bool) -> str:
        return render_chat(files, messages, inputs, created_at=clock, is_continued=is_continued)

    return ChatRenderer(render)


def unknown_arguments(files: ModelFiles, inputs: ChatInputs) -> list[str]:
    """The template arguments that the template does not name anywhere."""
    source = chat_template(files, has_tools=bool(inputs.tools))
    return [name for name in inputs.chat_template_kwargs or () if not re.search(rf"\b{re.escape(name)}\b", source)]


def chat_template(files: ModelFiles, *, has_tools: bool) -> str:
    """The template that Transformers would take. Raises `ChatRefused`."""
    return chosen_template(files.name, files.chat_templates, has_tools=has_tools)


def render_chat(
    files: ModelFiles,
    messages: Messages,
    inputs: ChatInputs = ChatInputs(),
    *,
    created_at: datetime,
    is_continued: bool = False,
    is_closed: bool = False,
) -> str:
    """The conversation as text, up to the answer. `created_at` is the time that templates which print one see.

    With `is_continued` the last message is left open, with `is_closed` no answer is asked for. Raises `ChatRefused`.
    """
    template = chat_template(files, has_tools=bool(inputs.tools))
    present = [{name: value for name, value in message.items() if value is not None} for message in messages]
    return bounded_chat(
        template,
        present,
        inputs,
        clock=created_at,
        special_tokens=files.special_tokens,
        is_continued=is_continued,
        is_closed=is_closed,
    )
