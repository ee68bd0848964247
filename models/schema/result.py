"""The tables of results and of the environments they were decoded in."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.schema.base import Base, BigId


class Environment(Base):
    """A model on a device with its libraries; all results decoded by the same ones share a row."""

    __tablename__ = "environments"

    id: Mapped[str] = mapped_column(primary_key=True)  # hash of the fields below
    model: Mapped[str]
    weights_hash: Mapped[str]  # over the weights that were loaded; for a hub model its commit
    tokenizer_hash: Mapped[str]  # over the tokenizer's files, the chat templates and the configurations
    dtype: Mapped[str]
    device: Mapped[str]
    attention: Mapped[str]  # the attention path of the engine
    versions: Mapped[dict[str, Any]]  # library -> version; `files`: small file of the model -> hash


class Result(Base):
    """One returned sequence of a succeeded job: a job has `n` of them, a beam search `num_return`.

    A worker writes the results, their traces and the job's final state in one transaction, so a job never has some of
    its results. Logprobs are in nats.
    """

    __tablename__ = "results"
    __table_args__ = (UniqueConstraint("job_id", "sample_index"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    job_id: Mapped[int] = mapped_column(BigId, ForeignKey("jobs.id", ondelete="CASCADE"))
    sample_index: Mapped[int]  # 0 … n - 1; for beams 0 is the best hypothesis
    text: Mapped[str]  # the answer, without the end or stop token and without the stop string
    finish_reason: Mapped[str]  # FinishReason
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]  # every generated token, those that ended it included
    cumulative_logprob: Mapped[float]  # the sum of `logprob` over all completion_tokens, however it ended
    score: Mapped[float | None]  # beams: the sum that the search ranks by, after the length penalty
    hypotheses: Mapped[list[dict[str, Any]] | None]  # beams, at sample_index 0: all finished, best first
    queued_seconds: Mapped[float]  # from submission to the worker's engine
    prefill_seconds: Mapped[float]
    decode_seconds: Mapped[float]
    environment_id: Mapped[str | None] = mapped_column(ForeignKey("environments.id"))
    prompt_hash: Mapped[str | None]  # of the token ids that the model saw
    prompt_text: Mapped[str | None]  # the text they were made of; kept on request
