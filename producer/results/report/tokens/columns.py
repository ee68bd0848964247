"""The tokens of answers as a page holds them: columns of whole numbers, their texts once a chunk."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Engine, select

from models.schema.trace import TokenTrace
from producer.results.queries import in_statements

#: Tokens of one answer that a page shows.
MAX_TOKENS = 4_000

#: The bound of a figure's parts: a logprob of minus infinity is a million thousandths.
MOST = 10**6

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
        select(*COLUMNS).where(TokenTrace.position < MAX_TOKENS).order_by(TokenTrace.result_id, TokenTrace.position)
    )
    for ids in in_statements(result_ids):
        with database.connect() as connection:
            for result_id, *token in connection.execute(statement.where(TokenTrace.result_id.in_(ids))):
                rows.setdefault(result_id, []).append(token)
    return {result_id: _columns(tokens, vocabulary) for result_id, tokens in rows.items()}


def _columns(tokens: Sequence[Sequence[Any]], vocabulary: Vocabulary) -> dict[str, list[Any]]:
    """Logprobs in thousandths of a nat below 0, entropies in hundredths; columns that say nothing are left out.

    NaN, which PostgreSQL stores for any program, becomes None, and so does an infinite entropy.
    """
    texts, logprobs, entropies, ranks, kept, beams, alternatives = zip(*tokens, strict=True)
    columns: dict[str, list[Any]] = {
        "t": [vocabulary.number_of(text) for text in texts],
        "p": [_thousandths(logprob) for logprob in logprobs],
        "e": [_hundredths(entropy) for entropy in entropies],
        "r": list(ranks),
        "k": list(kept),
    }
    if any(beam is not None for beam in beams):
        columns["b"] = list(beams)
    if any(alternatives):
        columns["a"] = [_alternatives(each, vocabulary) for each in alternatives]
    return columns


def _thousandths(logprob: float | None) -> int | None:
    if logprob is None or math.isnan(logprob):
        return None
    return round(min(max(-logprob * 1000, -MOST), MOST))


def _hundredths(entropy: float | None) -> int | None:
    return None if entropy is None or not math.isfinite(entropy) else round(min(max(entropy * 100, -MOST), MOST))


def _alternatives(found: Any, vocabulary: Vocabulary) -> list[int | None]:
    """Texts and logprobs by turns."""
    others = json.loads(found) if isinstance(found, str) else found or []
    return [
        number for other in others for number in (vocabulary.number_of(other["token"]), _thousandths(other["logprob"]))
    ]
