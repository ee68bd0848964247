"""Text from token ids: of a whole answer, of each of its tokens, and of an answer that still grows.

The text of an answer is what it adds to its prompt: `decode(prompt ids + answer ids)` is the prompt's text and then
the answer's. The texts of its tokens join to it. Every token is in the text, special ones too. Knows no sequences.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from os.path import commonprefix
from typing import Any

from models.checkpoint.probes import ids_unless_refused
from models.checkpoint.small_files import is_library_error
from worker.engine.text.cleanup import cleaned, kept_indices, safe_end
from worker.engine.text.decoder_rule import decoder_rule
from worker.engine.text.streams import ByteLevelText, CleanedText, SpelledText, TextStream, WholeText, pieces_of_bytes
from worker.engine.text.token_texts import REPLACEMENT, TokenText, TokenTexts

#: Tokens decoded together with a new one; enough for most tokenizers that join a token to those beside it.
CONTEXT_TOKENS = 6

#: Token ids on which a tokenizer's rule is compared with the tokenizer itself, at most.
MAX_PROBED_IDS = 2000


class Detokenizer:
    """Decodes for one tokenizer: by the text of each token where its decoder has such a rule, else by decoding all."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts = _token_texts(tokenizer)
        self._cleans_up = self._texts is not None and _cleans_up(tokenizer)
        if self._texts is not None and not all(map(self._has_its_text, _probes(tokenizer))):
            self._texts = None  # it decodes by further rules

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids))) if token_ids else ""

    def pieces(self, token_ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> list[str]:
        """The text that becomes visible with each token after a prompt."""
        if self._texts is None:
            return self._aligned_pieces(token_ids, prompt_ids)
        if not self._cleans_up:
            return _raw_pieces(self._texts, token_ids, prompt_ids)
        prompt = self._raw_text(prompt_ids)
        return _cleaned_pieces(prompt[safe_end(prompt) :], _raw_pieces(self._texts, token_ids, prompt_ids))

    def text(self, token_ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> str:
        """The text that the tokens add to a prompt."""
        if self._texts is None:
            whole = self.decode([*prompt_ids, *token_ids])
            return whole[self._prompt_end(prompt_ids, whole) :]
        return "".join(self.pieces(token_ids, prompt_ids))

    def stream(self, prompt_ids: Sequence[int] = ()) -> TextStream:
        """The text of an answer that is still empty."""
        if self._texts is not None and self._texts.rule.is_byte_level:
            stream: TextStream = ByteLevelText(self._texts, prompt_ids)
        elif self._texts is not None and self._texts.has_begun(prompt_ids):
            stream = SpelledText(self._texts, prompt_ids)
        else:
            return WholeText(lambda token_ids: self.text(token_ids, prompt_ids))
        return CleanedText(stream, self._raw_text(prompt_ids)) if self._cleans_up else stream

    def token_text(self, token_id: int) -> str:
        """The text of a token after others; a part of a character shows as the replacement character."""
        if self._texts is None:
            return self.decode([token_id])
        text = self._texts[token_id] or ""
        text = text if isinstance(text, str) else text.decode(errors="replace")
        return cleaned(text) if self._cleans_up else text

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes of a token that may be a part of a character, else None.

        Where spaces are removed, the bytes of whole characters are those of the token's text in its place.
        """
        text = None if self._texts is None else self._texts[token_id]
        if not isinstance(text, bytes) or (self._cleans_up and b" " in text and _is_whole(text)):
            return None
        return text

    def _has_its_text(self, token_ids: Sequence[int]) -> bool:
        """Whether the rule gives the tokenizer's own text; not where that raises, which each answer tells by itself."""
        try:
            return "".join(self.pieces(token_ids)) == self.decode(token_ids)
        except BaseException as error:
            if not is_library_error(error):
                raise
            return False

    def _raw_text(self, token_ids: Sequence[int]) -> str:
        assert self._texts is not None
        return "".join(_raw_pieces(self._texts, token_ids, ()))

    def _prompt_end(self, prompt_ids: Sequence[int], whole: str) -> int:
        """The end of the prompt in the text of prompt and answer."""
        return _common_prefix(self.decode(prompt_ids), whole)

    def _aligned_pieces(self, token_ids: Sequence[int], prompt_ids: Sequence[int]) -> list[str]:
        """Pieces without a rule: by windows of tokens, or by ever longer beginnings where windows give another text."""
        whole = self.decode([*prompt_ids, *token_ids])
        start = self._prompt_end(prompt_ids, whole)
        pieces = list(self._window_pieces(token_ids, prompt_ids[-CONTEXT_TOKENS:]))
        if "".join(pieces) == whole[start:]:
            return pieces
        shown = [
            _common_prefix(self.decode([*prompt_ids, *token_ids[:end]]).rstrip(REPLACEMENT), whole)
            for end in range(1, len(token_ids))
        ]
        bounds = [*accumulate([start, *shown], max), len(whole)] if token_ids else []
        return [whole[first:last] for first, last in pairwise(bounds)]

    def _window_pieces(self, token_ids: Sequence[int], context: Sequence[int]) -> Iterator[str]:
        """Each token's text is the text it adds to the tokens before it; an unfinished character waits."""
        ids, start = [*context, *token_ids], 0
        seen = self.decode(context)
        for end in range(len(context) + 1, len(ids) + 1):
            text = self.decode(ids[start:end])
            is_open = text.endswith(REPLACEMENT) and end < len(ids)
            yield "" if is_open else text[len(seen) :]
            if not is_open:
                start = max(start, end - CONTEXT_TOKENS)
                seen = self.decode(ids[start:end])


def _raw_pieces(texts: TokenTexts, token_ids: Sequence[int], prompt_ids: Sequence[int]) -> list[str]:
    """The pieces before any cleaning."""
    if texts.rule.is_byte_level:
        stream = ByteLevelText(texts, prompt_ids)
        pieces = [stream.append(token_id) for token_id in token_ids]
        if pieces:
            pieces[-1] += stream.close()
        return pieces
    pieces = _spelled_pieces(texts.in_place(token_ids, prompt_ids), texts.bytes_at_end(prompt_ids))
    if texts.rule.stripped and not texts.has_begun(prompt_ids):
        first = next((index for index, piece in enumerate(pieces) if piece), 0)
        pieces[first : first + 1] = [piece.removeprefix(texts.rule.stripped) for piece in pieces[first : first + 1]]
    return pieces


def _spelled_pieces(texts: Sequence[TokenText], data: bytes) -> list[str]:
    """A piece for each text; those of a run of bytes, which the prompt may have begun, depend on the whole run."""
    pieces = [text if isinstance(text, str) else "" for text in texts]
    places: list[int] = [-1] * len(data)
    for index, text in enumerate([*texts, ""]):
        if isinstance(text, bytes):
            data += text
            places.append(index)
        elif text is not None and data:
            for place, piece in zip(places, pieces_of_bytes(data), strict=True):
                if place >= 0:
                    pieces[place] = piece
            data, places = b"", []
    return pieces


def _cleaned_pieces(context: str, pieces: Sequence[str]) -> list[str]:
    """The pieces after a context, without the spaces that cleaning removes."""
    text = context + "".join(pieces)
    kept = set(kept_indices(text))
    bounds = accumulate(map(len, pieces), initial=len(context))
    return ["".join(text[index] for index in range(*bound) if index in kept) for bound in pairwise(bounds)]


def _is_whole(data: bytes) -> bool:
    return REPLACEMENT not in data.decode(errors="replace")


def _common_prefix(text: str, whole: str) -> int:
    """The length of the longest common beginning."""
    return len(text) if whole.startswith(text) else len(commonprefix((text, whole)))


def _token_texts(tokenizer: Any) -> TokenTexts | None:
    """The texts of the tokenizer's tokens, or None where its decoder has no rule."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    rule = decoder_rule(None if backend.decoder is None else json.loads(backend.decoder.__getstate__()))
    return None if rule is None else TokenTexts(rule, backend.id_to_token)


def _cleans_up(tokenizer: Any) -> bool:
    """Whether Transformers removes spaces before punctuation, as for any model but BPE where the folder says so."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    is_bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    return not is_bpe or bool(
        getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    )


def _probes(tokenizer: Any) -> list[list[int]]:
    """Token ids of everyday text, and of the whole vocabulary in large steps."""
    texts = ("Hello, it's \"fine\" . Isn't it ?  I 'm Ok !", "1 + 1 = 2\n\tdef f(x): return x", "naïve 日本 🦔")
    encode = partial(tokenizer, add_special_tokens=False)
    encoded = [ids_unless_refused(lambda probe: encode(probe)["input_ids"], text) for text in texts]
    size = len(tokenizer)
    return [
        *(ids for ids in encoded if ids is not None),
        list(range(0, size, -(-size // MAX_PROBED_IDS) or 1)),
        sorted(tokenizer.added_tokens_decoder)[:MAX_PROBED_IDS],
    ]
