"""Text from token ids: what becomes visible at each token, joining to exactly `tokenizer.decode` of them all."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

REPLACEMENT = "\ufffd"

#: Tokens of context that a decoder gets before a new one; enough for any that joins pieces by their neighbours.
CONTEXT_TOKENS = 6


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes, as byte-level BPE vocabularies spell them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return characters | {chr(256 + index): byte for index, byte in enumerate(others)}


class Detokenizer:
    """Decodes for one tokenizer. Byte-level tokenizers go through a table of bytes, others through windows."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._bytes = _token_bytes(tokenizer)

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids)))

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text that becomes visible at each token; the pieces join to `decode(token_ids)`."""
        whole = self.decode(token_ids)
        pieces = self._byte_pieces(token_ids) if self._bytes is not None else self._window_pieces(token_ids)
        if "".join(pieces) == whole:
            return pieces
        return self._prefix_pieces(token_ids, whole)

    def token_text(self, token_id: int) -> str:
        """One token by itself; a part of a character shows as the replacement character."""
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
        """Each token's text is what it adds to the tokens before it; unfinished characters wait."""
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
        """For tokenizers whose decoding is not local: the longest part of the whole that each prefix shows."""
        ends: list[int] = []
        for end in range(1, len(token_ids)):
            text = self.decode(token_ids[:end]).rstrip(REPLACEMENT)
            shown = 0
            while shown < min(len(text), len(whole)) and text[shown] == whole[shown]:
                shown += 1
            ends.append(max(shown, ends[-1] if ends else 0))
        borders = [0, *ends, len(whole)] if token_ids else []
        return [whole[start:end] for start, end in zip(borders, borders[1:], strict=False)]


class TextStream:
    """The text of one growing sequence, for finding stop strings as they appear."""

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
        """Adds a token; returns the text that became visible."""
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
    """Token id -> bytes where the tokenizer is byte-level and decodes without any further rule, else None."""
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
        is_spelt = token not in added and all(character in byte_of for character in token)
        table[token_id] = bytes(byte_of[c] for c in token) if is_spelt else token.encode()
    return table
