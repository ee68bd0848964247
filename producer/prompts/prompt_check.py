"""Prompts as the model will see them: chats rendered, lengths compared with the window, before anything is written.

A prompt of fewer UTF-8 bytes than the window has tokens cannot be too long; only the others are tokenized.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from models.chat import ChatInputs, content_text
from models.chat_rendering import ChatRefused
from producer.errors import LineProblem, UsageError
from producer.model_files.chat_template import chat_renderer, chat_template, unknown_arguments
from producer.model_files.folder import ModelFiles
from producer.model_files.tokenizer_calls import TokenizerFailed, tokenizer_call

#: Special tokens that a tokenizer adds to a prompt, at most.
MAX_ADDED_TOKENS = 8

END_OF_THOUGHT = "</think>"  # templates leave earlier thoughts out on purpose


class PromptCheck:
    """The check of each prompt of a file against one model. A line is rendered once; later passes know its problem."""

    def __init__(
        self, files: ModelFiles, *, context_window: int | None = None, created_at: datetime | None = None
    ) -> None:
        self.files = files
        self._window = files.context_window if context_window is None else context_window
        self._renderer = chat_renderer(files)
        self._created_at = created_at or datetime.now(UTC)
        self._problems: dict[str, LineProblem] = {}
        self._left_out: dict[str, str] = {}  # at most one: by the line's name, the message whose text is left out
        self._is_complete = False

    def complete(self) -> None:
        """Call after the first pass over the file: from now on each line's problem is known."""
        self._is_complete = True

    def check(self, line: str, prompt: str | None, messages: list[dict[str, Any]] | None, inputs: ChatInputs) -> None:
        """Raises `LineProblem` for a prompt that the model cannot take, `UsageError` for a model without chats.

        `line` is the record's own name in the file.
        """
        if not self._is_complete:
            try:
                text = self._check(prompt, messages, inputs)
                if not self._left_out and (place := _left_out(messages or [], text)) is not None:
                    self._left_out[line] = place
            except LineProblem as problem:
                self._problems[line] = problem
        if line in self._problems:
            raise self._problems[line]

    def remarks(self, line: str, inputs: ChatInputs) -> dict[str, str]:
        """Warnings about a line that was checked: what of it the template ignores, by the field's name."""
        found, template = {}, f"the chat template of {self.files.name}"
        if unknown := unknown_arguments(self.files, inputs):
            found["chat_template_kwargs"] = f"{', '.join(unknown)}: {template} has no such variable and ignores it"
        if (place := self._left_out.get(line)) is not None:
            found["tool_calls"] = f"{place}: {template} prints the tool calls and leaves the content out"
        return found

    def text(self, messages: list[dict[str, Any]], inputs: ChatInputs) -> str:
        """The conversation as the model will see it. Raises `LineProblem`."""
        try:
            return self._renderer.text(messages, inputs, self._created_at)
        except ChatRefused as refused:
            raise LineProblem("", str(refused)) from refused

    def _check(self, prompt: str | None, messages: list[dict[str, Any]] | None, inputs: ChatInputs) -> str:
        """The text that the model will see."""
        text = prompt
        if messages is not None:
            self._check_template(inputs)
            text = self.text(messages, inputs)
        assert text is not None
        if self._window is not None and len(text.encode()) + MAX_ADDED_TOKENS >= self._window:
            self._check_length("prompt" if messages is None else "messages", text, is_chat=messages is not None)
        return text

    def _check_template(self, inputs: ChatInputs) -> None:
        try:
            chat_template(self.files, has_tools=bool(inputs.tools))
        except ChatRefused as refused:
            raise UsageError(str(refused)) from refused

    def _check_length(self, field: str, text: str, *, is_chat: bool) -> None:
        window, tokenizer = self._window, self.files.tokenizer
        if window is None or tokenizer is None:
            return
        try:
            with tokenizer_call():
                num_tokens = len(tokenizer.encode(text, add_special_tokens=not is_chat).ids)
        except TokenizerFailed as failed:
            raise LineProblem(field, f"cannot be tokenized by {self.files.name}: {failed}") from failed
        if num_tokens >= window:
            raise LineProblem(
                field,
                f"has {num_tokens:,} tokens, and the context window of {self.files.name} is {window:,}; "
                "at least one token must be left for the answer",
            )


def _left_out(messages: list[dict[str, Any]], text: str) -> str | None:
    """The first message with tool calls whose content is not in the text: Llama 3's templates print one of the two."""
    for index, message in enumerate(messages):
        content = content_text(message.get("content")).rpartition(END_OF_THOUGHT)[2].strip()
        is_printed = content in text or json.dumps(content)[1:-1] in text
        if message.get("tool_calls") and not is_printed:
            return f"messages[{index}] (role {message['role']})"
    return None
