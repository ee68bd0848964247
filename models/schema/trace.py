"""The table of token traces."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.schema.base import Base, BigId, Json


class TokenTrace(Base):
    """One generated token of a result, with its probabilities when it was chosen.

    `logprob`, `entropy` and `rank` are of the model's raw distribution, `sampling_logprob` and `kept` of the one that
    was drawn from, after penalties, temperature and cuts. Logprobs and entropy are in nats.
    """

    __tablename__ = "token_traces"
    # Without rowid SQLite stores a sequence's tokens side by side, and needs no second index.
    __table_args__ = ({"sqlite_with_rowid": False},)

    result_id: Mapped[int] = mapped_column(BigId, ForeignKey("results.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)  # 0 is the first generated token
    token_id: Mapped[int]
    token: Mapped[str]  # the text that became visible at this token; joined, the answer's text
    logprob: Mapped[float]  # raw model distribution
    sampling_logprob: Mapped[float]  # distribution that was drawn from
    entropy: Mapped[float]  # raw model distribution
    rank: Mapped[int]  # 1 is the most probable token
    kept: Mapped[int]  # tokens that could have been drawn
    top_logprobs: Mapped[list[dict[str, Any]] | None] = mapped_column(Json)
    beam: Mapped[int | None]  # beams: the beam whose tokens come before this one
    token_bytes: Mapped[str | None]  # in hex, of a token that is a part of a character; null: those of its text
