"""The table of the load of workers over time."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from models.schema.base import Base, BigId


class WorkerSample(Base):
    """The load of one worker over some ten seconds; an idle worker writes none.

    Samples are deleted with the last run of their time. They do not refer to `workers`, where another worker of the
    same name replaces the row.
    """

    __tablename__ = "worker_samples"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)  # their end, by the database's clock
    seconds: Mapped[float]
    worker: Mapped[str]
    model: Mapped[str]
    running: Mapped[int]  # sequences in the batch, at the end
    waiting: Mapped[int]  # requests in the engine, at the end
    tokens: Mapped[int] = mapped_column(BigId)  # generated
    failed: Mapped[int]  # requests that ended with an error
    restarts: Mapped[int]  # engines that died
