"""A conversation as the text that the model sees: its chat template, rendered by Transformers' own renderer.

The only module of the producer that knows Transformers; the renderer is one that loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from models.chat import ChatInputs
from models.chat_rendering import ChatRefused, ChatRenderer
from producer.model_files.folder import ModelFiles

__all__ = ["ChatRefused", "chat_renderer", "chat_template", "render_chat", "unknown_arguments"]


def chat_renderer(files: ModelFiles) -> ChatRenderer:
    """The renderer of conversations for one model, which the worker's own equals."""

    def render(messages: Sequence[Mapping[str, Any]], inputs: ChatInputs, clock: datetime, is_continued: bool) -> str:
        return render_chat(
            files,
            messages,
            created_at=clock,
            tools=inputs.tools,
            documents=inputs.documents,
            template_kwargs=inputs.chat_template_kwargs,
            is_continued=is_continued,
        )

    return ChatRenderer(render)


def unknown_arguments(files: ModelFiles, inputs: ChatInputs) -> list[str]:
    """The template arguments that the template does not name anywhere."""
    source = chat_template(files, has_tools=bool(inputs.tools))
    return [name for name in inputs.chat_template_kwargs or () if not re.search(rf"\b{re.escape(name)}\b", source)]


def chat_template(files: ModelFiles, *, has_tools: bool) -> str:
    """The template that Transformers would take. Raises `ChatRefused`."""
    templates = files.chat_templates
    if not templates:
        raise ChatRefused(f"{files.name} has no chat template; give prompts instead of messages")
    if has_tools and "tool_use" in templates:
        return templates["tool_use"]
    if "default" not in templates:
        raise ChatRefused(
            f"{files.name} has several chat templates and none is the default: {', '.join(sorted(templates))}; "
            "copy the one you want to chat_template.jinja in its folder"
        )
    return templates["default"]


def render_chat(
    files: ModelFiles,
    messages: Sequence[Mapping[str, Any]],
    *,
    created_at: datetime,
    tools: list[Any] | None = None,
    documents: list[dict[str, Any]] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    is_continued: bool = False,
    is_closed: bool = False,
) -> str:
    """The conversation as text, up to the answer. `created_at` is the time that templates which print one see.

    With `is_continued` the last message is left open, with `is_closed` no answer is asked for. Raises `ChatRefused`.
    """
    from transformers.utils import chat_template_utils

    template = chat_template(files, has_tools=bool(tools))
    present = [{name: value for name, value in message.items() if value is not None} for message in messages]
    try:
        # The renderer compiles a template once and offers no way to set its clock but the compiled template's globals.
        chat_template_utils._compile_jinja_template(template).globals["strftime_now"] = created_at.strftime
        texts: Any = chat_template_utils.render_jinja_template(
            conversations=[present],
            tools=tools or None,
            documents=documents or None,
            chat_template=template,
            continue_final_message=is_continued,
            add_generation_prompt=not (is_continued or is_closed),
            **{**files.special_tokens, **(template_kwargs or {})},
        )
    except Exception as error:  # a template may raise anything
        raise ChatRefused(f"the chat template refuses it: {type(error).__name__}: {error}") from error
    return str(texts[0][0])
