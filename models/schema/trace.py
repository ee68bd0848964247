"""A token trace: what was known when one token was generated."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.schema.base import Base, BigId, Json


class TokenTrace(Base):
    __tablename__ = "token_traces"
    # One sequence's tokens lie together on disk, and no second index is kept.
    __table_args__ = ({"sqlite_with_rowid": False},)

    result_id: Mapped[int] = mapped_column(BigId, ForeignKey("results.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)  # 0 is the first generated token
    token_id: Mapped[int]
    token: Mapped[str]  # the text that became visible at this token
    logprob: Mapped[float]  # nats, raw model distribution
    sampling_logprob: Mapped[float]  # nats, distribution that was drawn from
    entropy: Mapped[float]  # nats, raw model distribution
    rank: Mapped[int]  # 1 is the most probable token
    kept: Mapped[int]  # tokens that could have been drawn
    top_logprobs: Mapped[list[dict[str, Any]] | None] = mapped_column(Json)
    beam: Mapped[int | None]  # beams: the row this token's history came from
