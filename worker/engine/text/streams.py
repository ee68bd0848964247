"""The text of an answer that still grows, token by token: one class for each kind of decoder.

Concatenating what `append` returns and what `close` returns gives the text of all tokens after the prompt.
"""

from __future__ import annotations

import copy
from codecs import utf_8_decode
from collections.abc import Callable, Sequence
from typing import Protocol, Self

from worker.engine.text.cleanup import cleaned, safe_end
from worker.engine.text.token_texts import REPLACEMENT, TokenTexts


class TextStream(Protocol):
    """The growing text of one answer."""

    open: str  # the text at the end, which a later token may still change; unfinished characters are not in it

    def append(self, token_id: int) -> str:
        """Adds a token; returns the text that no later token changes."""

    def close(self) -> str:
        """The text of the end, if no other token follows."""

    def copy(self) -> TextStream:
        """A stream that goes on from here by itself."""

    def may_show(self, token_id: int, characters: frozenset[str]) -> bool:
        """Whether one of the characters may appear with the token, whatever comes before it."""


class ByteLevelText:
    """The text of byte-level tokens: a character appears with its last byte."""

    open = ""

    def __init__(self, texts: TokenTexts, prompt_ids: Sequence[int]) -> None:
        self._texts = texts
        end = texts.bytes_at_end(prompt_ids)
        self._unfinished = end[utf_8_decode(end, "replace", False)[1] :]
        self._hides_first = bool(self._unfinished)  # the prompt has shown the replacement of its unfinished character

    def append(self, token_id: int) -> str:
        data = self._texts[token_id]
        if not isinstance(data, bytes):
            return ""
        if self._unfinished:
            data = self._unfinished + data
        text, used = utf_8_decode(data, "replace", False)
        self._unfinished = data[used:]
        return self._without_first(text) if self._hides_first and text else text

    def close(self) -> str:
        text = self._unfinished.decode(errors="replace")
        return self._without_first(text) if self._hides_first and text else text

    def may_show(self, token_id: int, characters: frozenset[str]) -> bool:
        """A character comes with its last byte, and the replacement of an invalid one with any."""
        data = self._texts[token_id]
        if not isinstance(data, bytes):
            return False
        return REPLACEMENT in characters or any(character.encode()[-1] in data for character in characters)

    def copy(self) -> Self:
        return copy.copy(self)

    def _without_first(self, text: str) -> str:
        self._hides_first = False
        return text.removeprefix(REPLACEMENT)


class SpelledText:
    """The text of tokens with texts of their own, and of byte tokens: a run of bytes is one string, or all invalid."""

    def __init__(self, texts: TokenTexts, prompt_ids: Sequence[int]) -> None:
        self._texts = texts
        self._run = texts.bytes_at_end(prompt_ids)
        self._num_prompt_bytes = len(self._run)
        self.open = ""

    def append(self, token_id: int) -> str:
        text = self._texts[token_id]
        if isinstance(text, str):
            if not self._run:
                return text
            text = self.close() + text
            self._run, self._num_prompt_bytes, self.open = b"", 0, ""
            return text
        if text is not None:
            self._run += text
            self.open = text_of_bytes(self._run, self._num_prompt_bytes, is_final=False)
        return ""

    def close(self) -> str:
        return text_of_bytes(self._run, self._num_prompt_bytes, is_final=True)

    def may_show(self, token_id: int, characters: frozenset[str]) -> bool:
        """The end of a run of bytes, which any text is, may show that they are no characters."""
        text = self._texts[token_id]
        if isinstance(text, str) and REPLACEMENT not in characters:
            return not characters.isdisjoint(text)
        return text is not None

    def copy(self) -> Self:
        return copy.copy(self)


class CleanedText:
    """The text of another stream, without the spaces before punctuation."""

    def __init__(self, source: TextStream, prompt: str) -> None:
        self._source = source
        self._text = prompt[safe_end(prompt) :]  # not yet cleaned
        self._num_prompt = len(self._text)
        self.open = ""

    def append(self, token_id: int) -> str:
        text = self._text + self._source.append(token_id)
        end = safe_end(text)
        added = cleaned(text[:end], self._num_prompt)
        self._text, self._num_prompt = text[end:], max(0, self._num_prompt - end)
        self.open = cleaned(self._text + self._source.open, self._num_prompt)
        return added

    def close(self) -> str:
        return cleaned(self._text + self._source.close(), self._num_prompt)

    def may_show(self, token_id: int, characters: frozenset[str]) -> bool:  # noqa: ARG002
        return True

    def copy(self) -> Self:
        other = copy.copy(self)
        other._source = self._source.copy()
        return other


class WholeText:
    """The text of any tokenizer's tokens: decodes all of them again for each one."""

    def __init__(self, text_of: Callable[[Sequence[int]], str]) -> None:
        """`text_of` gives the text of an answer's tokens."""
        self._text_of = text_of
        self._token_ids: list[int] = []
        self.open = ""

    def append(self, token_id: int) -> str:
        self._token_ids.append(token_id)
        self.open = self.close().rstrip(REPLACEMENT)
        return ""

    def close(self) -> str:
        return self._text_of(self._token_ids)

    def may_show(self, token_id: int, characters: frozenset[str]) -> bool:  # noqa: ARG002
        return True

    def copy(self) -> Self:
        other = copy.copy(self)
        other._token_ids = list(self._token_ids)
        return other


def text_of_bytes(data: bytes, start: int, *, is_final: bool) -> str:
    """The text of byte tokens in a row, from a byte on; unless final, without a character that has begun."""
    try:
        text = utf_8_decode(data, "strict", is_final)[0]
    except UnicodeDecodeError:
        return REPLACEMENT * (len(data) - start)
    return text[len(data[:start].decode(errors="ignore")) :] if start else text


def pieces_of_bytes(data: bytes) -> list[str]:
    """The text that becomes visible with each byte of a run."""
    pieces, start = [], 0
    try:
        data.decode()
    except UnicodeDecodeError:
        return [REPLACEMENT] * len(data)
    for end in range(1, len(data) + 1):
        text, used = utf_8_decode(data[start:end], "strict", False)
        pieces.append(text)
        start += used
    return pieces
