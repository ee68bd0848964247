"""A conversation as text through the tokenizer's chat template, by Transformers' renderer, at the time of its job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from models.chat import ChatInputs
from models.chat_rendering import ChatRefused, ChatRenderer
from models.chat_template import bounded_chat, chosen_template
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
        return bounded_chat(
            chosen_template(self._name, self._templates, has_tools=bool(inputs.tools)),
            messages,
            inputs,
            clock=clock,
            special_tokens=self._tokenizer.special_tokens_map,
            is_continued=is_continued,
        )

    @property
    def _templates(self) -> dict[str, str]:
        """The templates by name."""
        templates = getattr(self._tokenizer, "chat_template", None)
        if isinstance(templates, dict):
            return {name: str(template) for name, template in templates.items()}
        return {"default": str(templates)} if templates else {}
