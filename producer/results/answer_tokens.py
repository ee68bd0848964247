"""The tokens of an answer as OpenAI's formats have them: their texts join to the answer's text, and so do their bytes.

The end token, and whatever belongs to a stop string, is in the trace and not in the answer.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from models.states import FinishReason

REPLACEMENT = "\ufffd"

#: Bytes of an unfinished character, at most.
MAX_UNFINISHED = 3


@dataclass(frozen=True)
class AnswerToken:
    """One token of an answer; an alternative to one has no alternatives."""

    text: str
    data: bytes | None  # None: unknown, as for parts of characters in rows of 0.1
    logprob: float
    token_id: int | None
    alternatives: tuple[AnswerToken, ...] = ()


def answer_tokens(sample: dict[str, Any]) -> list[AnswerToken]:
    """The tokens of the text of a result with its `trace`; the last one is cut where a stop string begins in it."""
    tokens: list[AnswerToken] = []
    num_left = len(sample["text"])
    for row in sample["trace"] or []:
        if not num_left and sample["finish_reason"] != FinishReason.LENGTH:
            break
        text = row["token"][:num_left]
        num_left -= len(text)
        data = bytes.fromhex(row["token_bytes"]) if row.get("token_bytes") else text.encode()
        if not num_left and sample["finish_reason"] != FinishReason.LENGTH:
            data = _bytes_of_characters(data, len(text), _end_of(tokens))
        alternatives = tuple(_alternative(other) for other in row["top_logprobs"] or [])
        tokens.append(AnswerToken(text, data, row["logprob"], row.get("token_id"), alternatives))
    return tokens


def distinct_names(tokens: Iterable[AnswerToken]) -> dict[str, float]:
    """Name -> logprob of a token's alternatives: no two have the same name.

    A name is the text; `bytes:\\xe2\\x82` for a part of a character; `token_id:7` where a likelier one has that name.
    """
    named: dict[str, float] = {}
    for token in tokens:
        is_text = token.data is None or token.data == token.text.encode()
        name = token.text if is_text else "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data or b"")
        named[f"token_id:{token.token_id}" if name in named else name] = token.logprob
    return named


def _alternative(other: dict[str, Any]) -> AnswerToken:
    text = other["token"]
    data = bytes.fromhex(other["bytes"]) if other.get("bytes") else None if REPLACEMENT in text else text.encode()
    return AnswerToken(text, data, other["logprob"], other.get("token_id"))


def _end_of(tokens: list[AnswerToken]) -> bytes:
    """The last bytes of some tokens, among which are those of an unfinished character."""
    return b"".join(token.data or b"" for token in tokens[-MAX_UNFINISHED:])[-MAX_UNFINISHED:]


def _bytes_of_characters(data: bytes, num_characters: int, before: bytes) -> bytes:
    """As many bytes as it takes for that many characters to become visible after the bytes before."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(before)
    num_visible = 0
    for index in range(len(data)):
        num_visible += len(decoder.decode(data[index : index + 1]))
        if num_visible >= num_characters:
            return data[: index + 1]
    return data
