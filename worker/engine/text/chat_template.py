"""A conversation as text through the tokenizer's chat template, by Transformers' renderer, at the time of its job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from transformers.utils import chat_template_utils

from models.chat import ChatInputs
from models.chat_rendering import ChatRefused, ChatRenderer
from worker.engine.request import InvalidRequest


class ChatTemplate:
    """The chat templates of one tokenizer. A model without any refuses each conversation by name."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        self._name = name
        self._tokenizer = tokenizer
        self._renderer = ChatRenderer(self._render)

    def text(self, messages: Sequence[Mapping[str, Any]], inputs: ChatInputs, created_at: datetime) -> str:
        """The conversation up to the answer. Raises `InvalidRequest`."""
        try:
            return self._renderer.text(messages, inputs, created_at)
        except ChatRefused as refused:
            raise InvalidRequest(str(refused)) from refused

    def _render(
        self, messages: Sequence[Mapping[str, Any]], inputs: ChatInputs, clock: datetime, is_continued: bool
    ) -> str:
        template = self._template(has_tools=bool(inputs.tools))
        # The renderer compiles a template once; its clock can be set in the compiled template's globals only.
        chat_template_utils._compile_jinja_template(template).globals["strftime_now"] = clock.strftime
        rendered: Any = chat_template_utils.render_jinja_template(
            conversations=[list(map(dict, messages))],
            tools=list(inputs.tools) if inputs.tools else None,
            documents=inputs.documents,
            chat_template=template,
            continue_final_message=is_continued,
            add_generation_prompt=not is_continued,
            **{**self._tokenizer.special_tokens_map, **(inputs.chat_template_kwargs or {})},
        )
        return str(rendered[0][0])

    def _template(self, *, has_tools: bool) -> str:
        templates = getattr(self._tokenizer, "chat_template", None)
        if isinstance(templates, dict):
            if has_tools and "tool_use" in templates:
                return str(templates["tool_use"])
            if templates and "default" not in templates:
                names = ", ".join(sorted(templates))
                raise ChatRefused(
                    f"{self._name} has several chat templates and none is the default: {names}; "
                    "copy the one you want to chat_template.jinja in its folder"
                )
            templates = templates.get("default")
        if not templates:
            raise ChatRefused(f"{self._name} has no chat template; give a prompt instead of messages")
        return str(templates)
