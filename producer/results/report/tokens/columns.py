"""The tokens of answers as a page holds them: columns of whole numbers, their texts once a chunk."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Engine, select

from models.schema.trace import TokenTrace

#: Tokens of one answer that a page shows.
MAX_TOKENS = 4_000

COLUMNS = (
    TokenTrace.result_id, TokenTrace.token, TokenTrace.logprob, TokenTrace.entropy, TokenTrace.rank, TokenTrace.kept,
    TokenTrace.beam, TokenTrace.top_logprobs,
)  # fmt: skip


class Vocabulary:
    """The texts of a chunk's tokens, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number_of(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def texts(self) -> list[str]:
        """The texts in the order of their numbers."""
        return list(self._numbers)


def read_tokens(
    database: Engine, result_ids: Collection[int], vocabulary: Vocabulary
) -> dict[int, dict[str, list[Any]]]:
    """Result id -> the columns of its tokens; results without a trace are absent."""
    rows: dict[int, list[Sequence[Any]]] = {}
    statement = (
        select(*COLUMNS)
        .where(TokenTrace.result_id.in_(list(result_ids)), TokenTrace.position < MAX_TOKENS)
        .order_by(TokenTrace.result_id, TokenTrace.position)
    )
    if result_ids:
        with database.connect() as connection:
            for result_id, *token in connection.execute(statement):
                rows.setdefault(result_id, []).append(token)
    return {result_id: _columns(tokens, vocabulary) for result_id, tokens in rows.items()}


def _columns(tokens: Sequence[Sequence[Any]], vocabulary: Vocabulary) -> dict[str, list[Any]]:
    """Logprobs in thousandths of a nat below 0, entropies in hundredths; columns that say nothing are left out."""
    texts, logprobs, entropies, ranks, kept, beams, alternatives = zip(*tokens, strict=True)
    columns: dict[str, list[Any]] = {
        "t": [vocabulary.number_of(text) for text in texts],
        "p": [_thousandths(logprob) for logprob in logprobs],
        "e": [round(entropy * 100) for entropy in entropies],
        "r": list(ranks),
        "k": list(kept),
    }
    if any(beam is not None for beam in beams):
        columns["b"] = list(beams)
    if any(alternatives):
        columns["a"] = [_alternatives(each, vocabulary) for each in alternatives]
    return columns


def _thousandths(logprob: float) -> int:
    return round(-logprob * 1000) if math.isfinite(logprob) else 10**6


def _alternatives(found: Any, vocabulary: Vocabulary) -> list[int]:
    """Texts and logprobs by turns."""
    others = json.loads(found) if isinstance(found, str) else found or []
    return [
        number for other in others for number in (vocabulary.number_of(other["token"]), _thousandths(other["logprob"]))
    ]
