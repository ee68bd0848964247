"""The table of workers."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from models.schema.base import Base, BigId


class Worker(Base):
    """One Celery worker with its device and the model it serves; a heartbeat updates its row."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    device: Mapped[str]
    model: Mapped[str]
    max_num_seqs: Mapped[int]  # sequences that decode side by side at most
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]  # last sign of life
    stopped_at: Mapped[datetime | None]  # set when it shut down in order; null after a crash
    draining_since: Mapped[datetime | None]  # set by a person: it ends when its jobs have ended
    tokens_per_second: Mapped[float]  # generated, over the last seconds
    num_steps: Mapped[int] = mapped_column(BigId)  # engine steps since the start
    mean_running: Mapped[float]  # sequences per step since the start
    results_held: Mapped[int] = mapped_column(server_default="0")  # finished jobs that wait to be stored
    # Not a reference: the row of an environment comes back with its next result where a database is put back.
    environment_id: Mapped[str | None]
