"""One block of sampling parameters: what C, torch and the row sampler take of a row beside its logits.

`SamplingRules` are the same for all steps of a sequence, its `RowState` holds them with the tokens so far in arrays
that C can read, and a `SamplingRow` is a step's. Loads no torch: a sequence holds its state.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from models.model_defaults import MAX_TOKEN_IDS, ModelDefaults
from models.params import MAX_NEW_TOKENS, GenerationParams
from models.states import Strategy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SamplingRules:
    """The parameters of a job as samplers obey them, in this order: edits of the logits, temperature, cuts.

    Edits are bias, penalties and bans; cuts are `top_k`, then `top_p` or `nucleus_p`, then `min_p`.
    """

    temperature: float  # 0: greedy
    top_k: int  # the most tokens kept, and those as probable as the last; 0 keeps all
    top_p: float  # Transformers' rule: with the token that crosses the limit; 1 keeps all
    nucleus_p: float  # the study's rule: without it; 1 keeps all
    min_p: float  # least probability, relative to the largest
    repetition_penalty: float  # of tokens of prompt and answer
    presence_penalty: float  # of tokens of the answer
    frequency_penalty: float  # per occurrence in the answer
    bias: dict[int, float]
    always_banned: tuple[int, ...]
    first_banned: tuple[int, ...]  # at `first_index` alone
    first_index: int  # of a generated token
    eos_ids: tuple[int, ...]
    min_new_tokens: int  # the end ids are banned before
    is_rare: bool  # some rule is the row sampler's alone: `logits_processors` has it

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @cached_property
    def is_penalized(self) -> bool:
        """Whether the tokens so far change the logits."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def banned_ids(self, num_generated: int) -> tuple[int, ...]:
        """The tokens that must not come next."""
        banned = self.always_banned
        if self.first_banned and num_generated == self.first_index:
            banned += self.first_banned
        return banned + self.eos_ids if num_generated < self.min_new_tokens else banned


#: Lower ones draw as this one does: from the largest score alone. fp32 would make them zero, and the weights NaN.
LEAST_TEMPERATURE = 1e-30


def rules_of(params: GenerationParams, num_prompt_ids: int, eos_ids: tuple[int, ...]) -> SamplingRules:
    """The rules of a job: its own parameters, and the defaults of its model that it does not override."""
    defaults = params.model_defaults or ModelDefaults()
    is_sample, is_nucleus = params.strategy is Strategy.SAMPLE, params.strategy is Strategy.NUCLEUS
    return SamplingRules(
        temperature=max(params.temperature, LEAST_TEMPERATURE) if is_sample or is_nucleus else 0.0,
        top_k=min(params.top_k or 0, MAX_TOKEN_IDS - 1) if is_sample or is_nucleus else 0,
        top_p=params.top_p if is_sample else 1.0,
        nucleus_p=params.top_p if is_nucleus else 1.0,
        min_p=params.min_p or 0.0 if is_sample else 0.0,
        repetition_penalty=repetition_penalty_of(params),
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        bias=bias_of(params),
        always_banned=(*(defaults.suppress_tokens or ()), *single_bad_words(defaults, eos_ids)),
        first_banned=defaults.begin_suppress_tokens or (),
        first_index=int(num_prompt_ids == 1 and defaults.forced_bos_token_id is not None),
        eos_ids=eos_ids,
        min_new_tokens=min_new_tokens_of(params, num_prompt_ids),
        is_rare=is_rare(defaults),
    )


def repetition_penalty_of(params: GenerationParams) -> float:
    default = None if params.model_defaults is None else params.model_defaults.repetition_penalty
    return params.repetition_penalty if default is None else default


def min_new_tokens_of(params: GenerationParams, num_prompt_ids: int) -> int:
    """The tokens before which no end token comes; as in Transformers, `min_new_tokens` hides `min_length`."""
    defaults = params.model_defaults or ModelDefaults()
    default = defaults.min_new_tokens
    if default is None:
        default = (defaults.min_length or 0) - num_prompt_ids
    return max(params.min_new_tokens, min(default, MAX_NEW_TOKENS))


def bias_of(params: GenerationParams) -> dict[int, float]:
    """The bias of single tokens: the job's own and the model's, added up."""
    bias = dict(params.logit_bias or {})
    for token_ids, value in (params.model_defaults and params.model_defaults.sequence_bias) or ():
        if len(token_ids) == 1:
            bias[token_ids[0]] = bias.get(token_ids[0], 0.0) + value
    return bias


def single_bad_words(defaults: ModelDefaults, eos_ids: tuple[int, ...]) -> tuple[int, ...]:
    """The bad words of one token, except end tokens, as in Transformers."""
    return tuple(word[0] for word in defaults.bad_words_ids or () if len(word) == 1 and word[0] not in eos_ids)


def is_rare(defaults: ModelDefaults) -> bool:
    """Whether a default looks at the order of the tokens so far, or at the last step."""
    words = [*(defaults.bad_words_ids or ()), *(token_ids for token_ids, _ in defaults.sequence_bias or ())]
    return (
        any(len(word) > 1 for word in words)
        or defaults.no_repeat_ngram_size is not None
        or defaults.forced_bos_token_id is not None
        or defaults.forced_eos_token_id is not None
        or defaults.exponential_decay_length_penalty is not None
    )


class RowState:
    """The rules of a sequence and its tokens, in arrays of 32-bit integers; these stay empty where no rule looks."""

    def __init__(self, params: GenerationParams, prompt_ids: Sequence[int], eos_ids: tuple[int, ...]) -> None:
        self.rules = rules_of(params, len(prompt_ids), eos_ids)
        self.prompt_ids = array("i", prompt_ids if self.rules.repetition_penalty != 1 else ())
        self.token_ids = array("i")
        self.biased_ids = array("i", self.rules.bias)
        self.biases = array("f", self.rules.bias.values())
        self.packed = b""  # the rules as C's struct, by the sampler in C
        self.is_in_table: bool | None = None  # of a GPU's sampler; None before it was looked at
        self._banned: dict[tuple[int, ...], array[int]] = {}

    def update(self, token_ids: Sequence[int]) -> None:
        """Takes the tokens in that have come since the last step."""
        if self.rules.is_penalized and len(self.token_ids) < len(token_ids):
            self.token_ids.extend(token_ids[len(self.token_ids) :])

    def banned_ids(self, num_generated: int) -> array[int]:
        """The tokens that must not come next; the same array as long as they are the same."""
        ids = self.rules.banned_ids(num_generated)
        return self._banned.setdefault(ids, array("i", ids)) if ids not in self._banned else self._banned[ids]


@dataclass
class SamplingRow:
    """The inputs of a row's token beside its logits."""

    params: GenerationParams
    prompt_ids: Sequence[int]
    token_ids: Sequence[int]  # generated so far; without the one in flight
    eos_ids: tuple[int, ...]
    uniform: float  # the random number of this draw, in [0, 1)
    max_new_tokens: int | None = None  # None: the job's own
    in_flight_index: int | None = None  # of its newest token among those that are still on the device
    allowed: Tensor | None = None  # int32 [ceil(vocab / 32)], a bit per token that may come; None allows all
    kept_state: RowState | None = field(default=None, repr=False)  # of the sequence; None makes a new one

    @cached_property
    def state(self) -> RowState:
        """The sequence's state with the tokens so far."""
        state = self.kept_state or RowState(self.params, self.prompt_ids, self.eos_ids)
        state.update(self.token_ids)
        return state

    @property
    def rules(self) -> SamplingRules:
        return self.state.rules

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) + (self.in_flight_index is not None)

    @property
    def has_edits(self) -> bool:
        """Whether its token is drawn from other scores than the model's."""
        rules = self.rules
        has_static = rules.is_penalized or rules.is_rare or bool(rules.bias) or self.allowed is not None
        return has_static or bool(rules.banned_ids(self.num_generated))
