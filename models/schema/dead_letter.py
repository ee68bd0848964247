"""The table of dead letters."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from models.schema.base import Base, BigId


class DeadLetter(Base):
    """A message that was put aside: no chunk of ours, or one that says other than the rows it names.

    Workers keep the newest ones only; `producer prune` deletes old ones, since they may hold prompts.
    """

    __tablename__ = "dead_letters"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[datetime]  # by the database's clock
    worker: Mapped[str]  # the worker that met it
    queue: Mapped[str]
    reason: Mapped[str]
    job_id: Mapped[int | None] = mapped_column(BigId)  # the job it named; not a reference: there may be none
    num_bytes: Mapped[int] = mapped_column(BigId)  # of the whole message
    beginning: Mapped[str]  # of its text
