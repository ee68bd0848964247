"""The table of the load of workers over time."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from models.schema.base import Base, BigId


class WorkerSample(Base):
    """Some ten seconds of one worker; none of a worker without work. They are deleted with the last run of their time.

    Not a reference to `workers`: a row there is replaced by another worker of its name.
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
