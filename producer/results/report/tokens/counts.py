"""Tokens of some results counted by position and entropy, each database in the way that is fastest there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy
from sqlalchemy import ColumnElement, Engine, Integer, case, cast, func, literal, select

from models.schema.trace import TokenTrace

#: Steps of a nat in which entropies are counted, and the last step.
STEPS, LAST_STEP = 20, 1_000

#: The step of a token whose entropy is NULL, NaN or beyond these bounds, which no distribution has.
NO_STEP, MOST_NATS = LAST_STEP + 1, 1e6

#: A token as a character: twice its step, one more for rank 1, behind the characters that mean something.
FIRST_CHARACTER = 0x100

Count = tuple[int, int, int, int]  # position, step of the entropy or NO_STEP, tokens, tokens of rank 1


def token_counts(database: Engine, result_ids: Sequence[int]) -> Iterable[Count]:
    """The counts of the results' tokens."""
    return (_grouped if database.dialect.name == "postgresql" else _packed)(database, result_ids)


def _grouped(database: Engine, result_ids: Sequence[int]) -> Iterable[Count]:
    step = _step(func.greatest(0, func.least(cast(func.floor(TokenTrace.entropy * STEPS), Integer), LAST_STEP)))
    statement = (
        select(TokenTrace.position, step, func.count(), func.sum(cast(_is_first(), Integer)))
        .where(TokenTrace.result_id.in_(result_ids))
        .group_by(TokenTrace.position, step)
    )
    with database.connect() as connection:
        return [(position, step, count, firsts) for position, step, count, firsts in connection.execute(statement)]


def _packed(database: Engine, result_ids: Sequence[int]) -> Iterator[Count]:
    """SQLite sorts whatever it groups, unless the rows lie in the order of the groups: those of a result do.

    So each result becomes a text of a character a token, in the order of the primary key.
    """
    step = _step(func.max(0, func.min(cast(TokenTrace.entropy * STEPS, Integer), LAST_STEP)))
    character = func.char(2 * step + _is_first() + FIRST_CHARACTER)
    statement = (
        select(func.group_concat(character, literal("", literal_execute=True)))
        .where(TokenTrace.result_id.in_(result_ids))
        .group_by(TokenTrace.result_id)
    )
    with database.connect() as connection:
        texts = connection.execute(statement).scalars().all()
    if texts:
        yield from _unpacked(texts)


def _step(of_entropy: ColumnElement[int]) -> ColumnElement[int]:
    return case((TokenTrace.entropy.between(-MOST_NATS, MOST_NATS), of_entropy), else_=NO_STEP)


def _is_first() -> ColumnElement[int]:
    return TokenTrace.rank == 1  # type: ignore[return-value]


def _unpacked(texts: Sequence[str]) -> Iterator[Count]:
    lengths = numpy.fromiter(map(len, texts), numpy.int64, len(texts))
    codes = numpy.frombuffer("".join(texts).encode("utf-32-le"), numpy.uint32).astype(numpy.int64) - FIRST_CHARACTER
    positions = numpy.arange(len(codes)) - numpy.repeat(numpy.cumsum(lengths) - lengths, lengths)
    width = NO_STEP + 1
    keys = positions * width + codes // 2
    counts = numpy.bincount(keys)
    firsts = numpy.bincount(keys, weights=codes % 2)
    for key in numpy.flatnonzero(counts).tolist():
        yield key // width, key % width, int(counts[key]), int(firsts[key])
