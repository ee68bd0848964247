"""Text from token ids: of a whole answer, of each of its tokens, and of a sequence that still grows.

The texts of an answer's tokens join to exactly `tokenizer.decode` of all its ids. Knows no sequences.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

REPLACEMENT = "\ufffd"

#: Tokens decoded together with a new one; enough for every tokenizer that joins a token to its neighbours.
CONTEXT_TOKENS = 6


@cache
def _byte_of_character() -> dict[str, int]:
    """The byte of each printable character that stands for it in byte-level BPE vocabularies, as in GPT-2's."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return characters | {chr(256 + index): byte for index, byte in enumerate(others)}


class Detokenizer:
    """Decodes for one tokenizer: by a table of bytes where it is byte-level, else by windows of tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._bytes = _token_bytes(tokenizer)

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids)))

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text that becomes visible with each token; the texts join to `decode(token_ids)`."""
        whole = self.decode(token_ids)
        pieces = self._byte_pieces(token_ids) if self._bytes is not None else self._window_pieces(token_ids)
        if "".join(pieces) == whole:
            return pieces
        return self._prefix_pieces(token_ids, whole)

    def token_text(self, token_id: int) -> str:
        """The text of one token on its own; a part of a character shows as the replacement character."""
        if self._bytes is not None:
            return self._bytes.get(token_id, b"").decode("utf-8", errors="replace")
        return self.decode([token_id])

    def _byte_pieces(self, token_ids: Sequence[int]) -> list[str]:
        assert self._bytes is not None
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        pieces = [decoder.decode(self._bytes.get(token_id, b"")) for token_id in token_ids]
        if pieces:
            pieces[-1] += decoder.decode(b"", final=True)
        return pieces

    def _window_pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Each token's text is the text it adds to the tokens before it; an unfinished character waits."""
        pieces, start, seen = [], 0, ""
        for end in range(1, len(token_ids) + 1):
            text = self.decode(token_ids[start:end])
            is_open = text.endswith(REPLACEMENT) and end < len(token_ids)
            pieces.append("" if is_open else text[len(seen) :])
            if not is_open:
                start = max(start, end - CONTEXT_TOKENS)
                seen = self.decode(token_ids[start:end])
        return pieces

    def _prefix_pieces(self, token_ids: Sequence[int], whole: str) -> list[str]:
        """For tokenizers that need the whole context: each prefix of the ids shows the longest prefix of the text."""
        ends: list[int] = []
        for end in range(1, len(token_ids)):
            text = self.decode(token_ids[:end]).rstrip(REPLACEMENT)
            shown = 0
            while shown < min(len(text), len(whole)) and text[shown] == whole[shown]:
                shown += 1
            ends.append(max(shown, ends[-1] if ends else 0))
        bounds = [0, *ends, len(whole)] if token_ids else []
        return [whole[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]


class TextStream:
    """The text of one growing sequence, in which stop strings are looked for as they appear."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._token_ids: list[int] = []
        self._start = 0
        self._seen = ""
        self.text = ""

    def copy(self) -> TextStream:
        other = TextStream(self._detokenizer)
        other._token_ids, other._start = list(self._token_ids), self._start
        other._seen, other.text = self._seen, self.text
        return other

    def append(self, token_id: int) -> str:
        """Adds a token; returns the text that becomes visible with it."""
        self._token_ids.append(token_id)
        text = self._detokenizer.decode(self._token_ids[self._start :])
        if text.endswith(REPLACEMENT):
            return ""
        added = text[len(self._seen) :]
        self.text += added
        self._start = max(self._start, len(self._token_ids) - CONTEXT_TOKENS)
        self._seen = self._detokenizer.decode(self._token_ids[self._start :])
        return added


def _token_bytes(tokenizer: Any) -> dict[int, bytes] | None:
    """The bytes of each token id, or None unless the tokenizer is byte-level and decodes by no further rule."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return None
    decoder = json.loads(backend.to_str())["decoder"]
    if decoder is None or decoder["type"] != "ByteLevel":
        return None
    byte_of = _byte_of_character()
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    table = {}
    for token, token_id in tokenizer.get_vocab().items():
        is_byte_level = token not in added and all(character in byte_of for character in token)
        table[token_id] = bytes(byte_of[c] for c in token) if is_byte_level else token.encode()
    return table
