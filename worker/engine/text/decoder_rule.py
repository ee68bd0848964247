"""The decoder of a `tokenizer.json`, read as a rule for the text of each token.

A decoder is a chain of steps over all tokens. Most chains give each token the same text wherever it stands, except
at the very beginning; for others there is no rule, and text comes from decoding all ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

#: Changes the text of a token; the flag says whether it is the first of all.
Step = Callable[[str, bool], str]

#: A token that stands for one byte, where the decoder has a step `ByteFallback`.
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")

#: The replacements of the step `WordPiece`, in its order.
WORD_PIECE_CLEANUP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
    (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


@dataclass(frozen=True)
class DecoderRule:
    """The steps that make a token's text, and the exceptions to them."""

    steps: tuple[Step, ...] = ()
    is_byte_level: bool = False  # each character of a token stands for a byte, as in GPT-2's vocabulary
    has_byte_tokens: bool = False  # a token `<0xE2>` is that byte
    stripped: str = ""  # a character that is cut from the beginning of the whole text

    def token_text(self, token: str, *, is_first: bool) -> str | bytes:
        """The text that a token adds; bytes where tokens may be parts of characters."""
        if self.is_byte_level:
            return bytes_of(token)
        for step in self.steps:
            token = step(token, is_first)
        if self.has_byte_tokens and BYTE_TOKEN.fullmatch(token):
            return bytes([int(token[3:5], 16)])
        return token


def decoder_rule(decoder: dict[str, Any] | None) -> DecoderRule | None:
    """The rule of a decoder as `tokenizer.json` has it; None where a token's text depends on more."""
    if decoder is None:
        return DecoderRule((_spaced,))
    chain = list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]
    if [step["type"] for step in chain] in (["ByteLevel"], ["ByteLevel", "Fuse"]):
        return DecoderRule(is_byte_level=True)
    stripped = _take_strip(chain)
    has_byte_tokens = bool(chain) and chain[-1]["type"] == "ByteFallback"
    steps = [_step(each) for each in (chain[:-1] if has_byte_tokens else chain)]
    if stripped is None or not all(steps):
        return None
    return DecoderRule(tuple(step for step in steps if step), has_byte_tokens=has_byte_tokens, stripped=stripped)


def bytes_of(token: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary; a token of other characters stands for itself."""
    byte_of = _byte_of_character()
    try:
        return bytes([byte_of[character] for character in token])
    except KeyError:
        return token.encode()


@cache
def _byte_of_character() -> dict[str, int]:
    """The byte of each printable character that stands for it in byte-level vocabularies, as in GPT-2's."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return characters | {chr(256 + index): byte for index, byte in enumerate(others)}


def _take_strip(chain: list[dict[str, Any]]) -> str | None:
    """Takes `Fuse` and the strip of one character after it off the chain; None for a strip of another kind."""
    stripped = ""
    if chain and chain[-1]["type"] == "Strip":
        strip = chain.pop()
        is_plain = bool(chain) and chain[-1]["type"] == "Fuse" and strip["start"] == 1 and strip["stop"] == 0
        if not is_plain:
            return None
        stripped = str(strip["content"])
    if chain and chain[-1]["type"] == "Fuse":
        chain.pop()
    return stripped


def _step(step: dict[str, Any]) -> Step | None:
    """The function of a step of the chain; None for a step that looks at several tokens."""
    if step["type"] == "Replace" and "String" in step["pattern"]:
        return _replace(step["pattern"]["String"], step["content"])
    if step["type"] == "Metaspace":
        return _metaspace(step["replacement"], drops_first=step["prepend_scheme"] != "never")
    if step["type"] == "WordPiece":
        return _word_piece(step["prefix"], cleans_up=step["cleanup"])
    return None


def _spaced(token: str, is_first: bool) -> str:
    return token if is_first else f" {token}"


def _replace(pattern: str, content: str) -> Step:
    return lambda token, _: token.replace(pattern, content)


def _metaspace(replacement: str, *, drops_first: bool) -> Step:
    return lambda token, is_first: token.replace(replacement, "" if is_first and drops_first else " ")


def _word_piece(prefix: str, *, cleans_up: bool) -> Step:
    def step(token: str, is_first: bool) -> str:
        if not is_first:
            token = token[len(prefix) :] if token.startswith(prefix) else f" {token}"
        for old, new in WORD_PIECE_CLEANUP if cleans_up else ():
            token = token.replace(old, new)
        return token

    return step
