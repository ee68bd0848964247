"""Prompts as the model will see them: chats rendered, lengths compared with the window, before anything is written.

A prompt of fewer UTF-8 bytes than the window has tokens cannot be too long; only the others are tokenized.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from models.chat import ChatInputs
from models.chat_rendering import ChatRefused
from producer.errors import LineProblem, UsageError
from producer.model_files.chat_template import chat_renderer, chat_template, unknown_arguments
from producer.model_files.folder import ModelFiles
from producer.model_files.tokenizer_calls import TokenizerFailed, tokenizer_call

#: Special tokens that a tokenizer adds to a prompt, at most.
MAX_ADDED_TOKENS = 8


class PromptCheck:
    """The check of each prompt of a file against one model. A line is rendered once; later passes know its problem."""

    def __init__(
        self, files: ModelFiles, *, context_window: int | None = None, created_at: datetime | None = None
    ) -> None:
        self.files = files
        self._window = files.context_window if context_window is None else context_window
        self._renderer = chat_renderer(files)
        self._created_at = created_at or datetime.now(UTC)
        self._problems: dict[int, LineProblem] = {}
        self._is_complete = False

    def complete(self) -> None:
        """Call after the first pass over the file: from now on each line's problem is known."""
        self._is_complete = True

    def check(self, number: int, prompt: str | None, messages: list[dict[str, Any]] | None, inputs: ChatInputs) -> None:
        """Raises `LineProblem` for a prompt that the model cannot take, `UsageError` for a model without chats."""
        if not self._is_complete:
            try:
                self._check(prompt, messages, inputs)
            except LineProblem as problem:
                self._problems[number] = problem
        if number in self._problems:
            raise self._problems[number]

    def remark(self, inputs: ChatInputs) -> str | None:
        """The warning about template arguments that the template does not know."""
        if not (unknown := unknown_arguments(self.files, inputs)):
            return None
        return f"{', '.join(unknown)}: the chat template of {self.files.name} has no such variable and ignores it"

    def text(self, messages: list[dict[str, Any]], inputs: ChatInputs) -> str:
        """The conversation as the model will see it. Raises `LineProblem`."""
        try:
            return self._renderer.text(messages, inputs, self._created_at)
        except ChatRefused as refused:
            raise LineProblem("", str(refused)) from refused

    def _check(self, prompt: str | None, messages: list[dict[str, Any]] | None, inputs: ChatInputs) -> None:
        text = prompt
        if messages is not None:
            self._check_template(inputs)
            text = self.text(messages, inputs)
        assert text is not None
        if self._window is not None and len(text.encode()) + MAX_ADDED_TOKENS >= self._window:
            self._check_length("prompt" if messages is None else "messages", text, is_chat=messages is not None)

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
