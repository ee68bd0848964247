"""Defaults of a model that change its logits or its ends, as the producer stores them with each job.

A worker applies them as they stand and adds none of its own: an absent field is neutral. A field that Transformers'
`GenerationConfig` has too means the same as there.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

#: Ids are below: samplers hold 32 bits of each, and no vocabulary has as many.
MAX_TOKEN_IDS = 2**31

TokenId = Annotated[int, Field(ge=0, lt=MAX_TOKEN_IDS)]
TokenIds = tuple[TokenId, ...]
TokenSequence = Annotated[TokenIds, Field(min_length=1)]


class ModelDefaults(BaseModel):
    """The resolved defaults of one job: those of its model's generation config that the job does not override."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    eos_token_ids: TokenIds | None = None  # every id that ends an answer
    repetition_penalty: float | None = Field(default=None, gt=0)
    no_repeat_ngram_size: int | None = Field(default=None, ge=1)
    bad_words_ids: tuple[TokenSequence, ...] | None = None
    sequence_bias: tuple[tuple[TokenSequence, float], ...] | None = None
    suppress_tokens: TokenIds | None = None
    begin_suppress_tokens: TokenIds | None = None
    min_length: int | None = Field(default=None, ge=0)  # of prompt and answer together
    min_new_tokens: int | None = Field(default=None, ge=0)
    forced_bos_token_id: TokenId | None = None
    forced_eos_token_id: TokenIds | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None

    @property
    def required_ids(self) -> tuple[int, ...]:
        """The tokens that a vocabulary must have; suppressed and end tokens that it lacks just never come."""
        words = [*(self.bad_words_ids or ()), *(token_ids for token_ids, _ in self.sequence_bias or ())]
        forced = () if self.forced_bos_token_id is None else (self.forced_bos_token_id,)
        return (*(token_id for word in words for token_id in word), *forced, *(self.forced_eos_token_id or ()))

    @property
    def changes_logits(self) -> bool:
        """Whether a field beside the end ids is set."""
        return any(getattr(self, name) is not None for name in type(self).model_fields if name != "eos_token_ids")

    @property
    def stored(self) -> dict[str, Any] | None:
        """The fields that are set, as JSON values; None where none is."""
        return self.model_dump(mode="json", exclude_none=True) or None
