"""A sequence in the hands of the model's own `generate`: its cache and keyword arguments, carried from token to token.

`generate` itself prepares the arguments of a prompt, and the functions of its loop those of each further token.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

#: Tokens of the two prompts whose difference in memory is that of the tokens between.
MEASURED_LENGTHS = (8, 40)


@dataclass
class OwnCache:
    """The state of one sequence: its ids [1, tokens], and the arguments of its next forward pass."""

    input_ids: Tensor
    arguments: dict[str, Any]

    def fork(self) -> OwnCache:
        """A copy that shares no tensor."""
        return copy.deepcopy(self)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in _tensors_of([self.input_ids, self.arguments], set()))


class OwnCacheDecoder:
    """The next token's logits [vocab] of one sequence after another, each with a cache of its own."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._config = GenerationConfig(do_sample=False, use_cache=True, max_new_tokens=1, pad_token_id=0)

    @property
    def device(self) -> torch.device:
        device: torch.device = self._model.device
        return device

    def prefill(self, prompt_ids: Iterable[int]) -> tuple[OwnCache, Tensor]:
        """The state of a prompt, and its logits."""
        input_ids = torch.tensor([list(prompt_ids)], device=self._model.device)
        config, arguments = self._arguments_of(input_ids)
        output = self._model._prefill(input_ids, config, arguments)
        return self._after(input_ids, output, arguments)

    def decode(self, state: OwnCache, token_id: int) -> tuple[OwnCache, Tensor]:
        """The state with one token more, and its logits; the old state is of no use afterwards."""
        input_ids = torch.cat([state.input_ids, state.input_ids.new_tensor([[token_id]])], dim=-1)
        arguments = state.arguments
        inputs = self._model.prepare_inputs_for_generation(
            input_ids, next_sequence_length=1 if arguments.get("use_cache") else None, **arguments
        )
        return self._after(input_ids, self._model(**inputs, return_dict=True), arguments)

    def _arguments_of(self, input_ids: Tensor) -> tuple[GenerationConfig, dict[str, Any]]:
        """The configuration and the arguments with which `generate` enters its loop."""
        captured: list[Any] = []

        def enter(
            model: Any,  # noqa: ARG001
            input_ids: Tensor,
            logits_processor: Any,  # noqa: ARG001
            stopping_criteria: Any,  # noqa: ARG001
            generation_config: GenerationConfig,
            **arguments: Any,
        ) -> Tensor:
            captured.extend([generation_config, arguments])
            return input_ids

        self._model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=copy.deepcopy(self._config),
            custom_generate=enter,
        )
        config, arguments = captured
        return config, {name: value for name, value in arguments.items() if name not in _OF_THE_LOOP}

    def _after(self, input_ids: Tensor, output: Any, arguments: dict[str, Any]) -> tuple[OwnCache, Tensor]:
        updated = self._model._update_model_kwargs_for_generation(
            output, arguments, is_encoder_decoder=self._model.config.is_encoder_decoder
        )
        return OwnCache(input_ids, updated), output.logits[0, -1]


@dataclass(frozen=True)
class OwnCacheModel:
    """A model that runs through its own cache, and the memory of a sequence there."""

    decoder: OwnCacheDecoder
    bytes_per_token: int
    bytes_per_sequence: int


#: Arguments of `generate`'s loop itself, which it does not hand to the model.
_OF_THE_LOOP = frozenset({"synced_gpus", "streamer", "assistant_model", "tokenizer", "assistant_tokenizer"})


@torch.inference_mode()
def measured(decoder: OwnCacheDecoder) -> OwnCacheModel:
    """The model with the bytes that a sequence keeps for each of its tokens, and beside them."""
    short, long = (decoder.prefill([1] * length)[0].num_bytes for length in MEASURED_LENGTHS)
    per_token = max(-(-(long - short) // (MEASURED_LENGTHS[1] - MEASURED_LENGTHS[0])), 1)
    return OwnCacheModel(decoder, per_token, max(short - MEASURED_LENGTHS[0] * per_token, 0))


def _tensors_of(value: Any, seen: set[int]) -> Iterable[Tensor]:
    """Every tensor in some (nested) containers and objects, once."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    parts: Iterable[Any] = ()
    if isinstance(value, dict):
        parts = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        parts = vars(value).values()
    for part in parts:
        yield from _tensors_of(part, seen)
