"""The text of each token of a vocabulary, and of tokens in a row after a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from worker.engine.text.decoder_rule import DecoderRule

REPLACEMENT = "\ufffd"

#: Bytes that an unfinished character has, at most.
MAX_UNFINISHED = 3

#: A token's text, its bytes where it may be a part of a character, or None for an id that the vocabulary lacks.
TokenText = str | bytes | None


class TokenTexts(dict[int, TokenText]):
    """The text that each token id adds to the tokens before it, computed when it is first asked for."""

    def __init__(self, rule: DecoderRule, token_of: Callable[[int], str | None]) -> None:
        """`token_of` gives the token of an id as the vocabulary spells it."""
        super().__init__()
        self.rule = rule
        self._token_of = token_of

    def __missing__(self, token_id: int) -> TokenText:
        text = self[token_id] = self._text_of(token_id, is_first=False)
        return text

    def in_place(self, token_ids: Sequence[int], prompt_ids: Sequence[int]) -> list[TokenText]:
        """The texts of tokens after a prompt: the very first token of all may have another one."""
        texts = [self[token_id] for token_id in token_ids]
        if all(self[token_id] is None for token_id in prompt_ids):
            first = next((index for index, text in enumerate(texts) if text is not None), None)
            if first is not None:
                texts[first] = self._text_of(token_ids[first], is_first=True)
        return texts

    def has_begun(self, prompt_ids: Iterable[int]) -> bool:
        """Whether the prompt has text, so that nothing is cut from the beginning of the answer."""
        return any(self[token_id] for token_id in prompt_ids)

    def bytes_at_end(self, token_ids: Sequence[int]) -> bytes:
        """The bytes whose text may change with the next token.

        Those are all byte tokens in a row, or as many bytes of byte-level tokens as an unfinished character has.
        """
        end = b""
        for token_id in reversed(token_ids):
            text = self[token_id]
            if isinstance(text, str) or (self.rule.is_byte_level and len(end) >= MAX_UNFINISHED):
                break
            end = (text or b"") + end
        return end

    def _text_of(self, token_id: int, *, is_first: bool) -> TokenText:
        token = self._token_of(token_id)
        return None if token is None else self.rule.token_text(token, is_first=is_first)
