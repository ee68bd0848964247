"""Small random models of several architectures, and the answers of `transformers.generate` with them.

The weights are drawn large enough that the next-token distributions are neither flat nor one-sided.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from models.params import GenerationParams
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.model_loader import LoadedModel, prepare_model

VOCAB = 199
WINDOW = 512
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": WINDOW,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED: dict[str, Any] = {**_SHAPE, "num_key_value_heads": 2}

ARCHITECTURES: dict[str, Any] = {
    "qwen2": lambda: Qwen2Config(**_GROUPED),
    "llama-grouped": lambda: LlamaConfig(**_GROUPED),
    "qwen3": lambda: Qwen3Config(**_GROUPED, head_dim=16),
    "mistral-window": lambda: MistralConfig(**_GROUPED, sliding_window=12),
    # Heads of whole tiles: in bf16 they are attended on AMX where there is one.
    "mistral-wide": lambda: MistralConfig(**_GROUPED, head_dim=32, sliding_window=12),
    "gemma2-softcap": lambda: Gemma2Config(**_GROUPED, head_dim=16, sliding_window=16, query_pre_attn_scalar=16),
    "gpt-neox": lambda: GPTNeoXConfig(**_SHAPE),
}

#: For a look at memory: many layers, small beside all of them, and little vocabulary.
OTHERS: dict[str, Any] = {"deep": lambda: Qwen2Config(**{**_GROUPED, "num_hidden_layers": 12})}


@dataclass(frozen=True)
class Pair:
    """The same weights twice: as Transformers runs them, and prepared for our engine."""

    reference: Any
    loaded: LoadedModel

    def engine(self, **config: Any) -> Engine:
        return Engine(self.loaded, EngineConfig(**{"kv_memory": 0.05, "block_size": 16, **config}))


@cache
def random_pair(architecture: str, dtype: torch.dtype = torch.float32) -> Pair:
    """A model of the architecture with weights that depend on its name alone."""
    torch.manual_seed(sum(map(ord, architecture)))
    model = AutoModelForCausalLM.from_config((ARCHITECTURES | OTHERS)[architecture]()).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
        # Louder answers: the distribution's entropy is then about half of the most it could be.
        model.get_output_embeddings().weight.mul_(1.5)
    reference = copy.deepcopy(model)
    loaded = prepare_model(architecture, model, None, torch.device("cpu"))
    return Pair(reference, loaded)


def altered(loaded: LoadedModel, **parts: Any) -> LoadedModel:
    """The same model with other parts of its `DeviceModel`."""
    return replace(loaded, model=replace(loaded.model, **parts))


def random_prompts(count: int, seed: int, longest: int = 60) -> list[tuple[int, ...]]:
    """Prompts of 1 to `longest` ids, without the special ones."""
    rng = random.Random(seed)
    return [tuple(rng.choices(range(3, VOCAB), k=rng.randint(1, longest))) for _ in range(count)]


@torch.inference_mode()
def generate(
    reference: Any, prompt_ids: Sequence[int], params: GenerationParams
) -> list[tuple[list[int], float | None]]:
    """Transformers' own answer to one prompt: generated ids and score of each returned sequence, the best first."""
    eos_ids = list(params.eos_token_ids or ())
    options: dict[str, Any] = {}
    if params.num_beams > 1:
        options = {
            "num_beams": params.num_beams,
            "num_return_sequences": params.num_return,
            "length_penalty": params.length_penalty,
            "early_stopping": True,
        }
    output = reference.generate(
        torch.tensor([list(prompt_ids)]),
        attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=params.max_new_tokens,
        min_new_tokens=params.min_new_tokens or None,
        repetition_penalty=params.repetition_penalty,
        eos_token_id=eos_ids or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    scores = [None] if params.num_beams == 1 else output.sequences_scores.tolist()
    rows = output.sequences[:, len(prompt_ids) :].tolist()
    return [(_without_padding(row, eos_ids), score) for row, score in zip(rows, scores, strict=True)]


def _without_padding(token_ids: list[int], eos_ids: list[int]) -> list[int]:
    for index, token_id in enumerate(token_ids):
        if token_id in eos_ids:
            return token_ids[: index + 1]
    return token_ids
