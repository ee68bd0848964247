"""A result: one returned sequence; and the environment it was decoded in."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.schema.base import Base, BigId


class Environment(Base):
    """What decoded a result: one row is shared by all results of the same model, device and libraries."""

    __tablename__ = "environments"

    id: Mapped[str] = mapped_column(primary_key=True)  # hash of the fields below
    model: Mapped[str]
    weights_hash: Mapped[str]  # over the safetensors files
    tokenizer_hash: Mapped[str]
    dtype: Mapped[str]
    device: Mapped[str]
    attention: Mapped[str]  # the attention path of the engine
    versions: Mapped[dict[str, Any]]  # library -> version


class Result(Base):
    __tablename__ = "results"
    __table_args__ = (UniqueConstraint("job_id", "sample_index"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    job_id: Mapped[int] = mapped_column(BigId, ForeignKey("jobs.id", ondelete="CASCADE"))
    sample_index: Mapped[int]  # 0 … n - 1; for beams 0 is the best hypothesis
    text: Mapped[str]  # without the end token and without the stop string
    finish_reason: Mapped[str]  # FinishReason
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]  # the end token included
    cumulative_logprob: Mapped[float]  # nats, of the raw distribution; for beams the sum that is scored
    score: Mapped[float | None]  # beams: length-penalised logprob
    hypotheses: Mapped[list[dict[str, Any]] | None]  # beams, at index 0: every finished one, the best first
    queued_seconds: Mapped[float]  # from submission to the worker's engine
    prefill_seconds: Mapped[float]
    decode_seconds: Mapped[float]
    environment_id: Mapped[str | None] = mapped_column(ForeignKey("environments.id"))
