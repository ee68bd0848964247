"""One tiny model's sequences alone, eight together and all together: the tokens and numbers that differ."""

from __future__ import annotations

import random
from typing import Any

import torch

from benchmarks.model_matrix.tiny import tiny_model
from models.params import GenerationParams
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.loading.twin import TOKEN_IDS
from worker.engine.model_loader import LoadedModel, prepare_model
from worker.engine.request import Request

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NUM_SEQUENCES = 64
MAX_NEW_TOKENS = 4
#: Slots, and tokens of prompts in a step: alone prompts are in pieces, else mostly whole.
TOGETHER, OTHERS = (64, 512), ((8, 128), (1, 64))

#: Two log-probabilities of each token, compared with each of the others.
NUMBERS_OF_A_SEQUENCE = 2 * MAX_NEW_TOKENS * len(OTHERS)

#: Of one sequence: its tokens, and the two log-probabilities of each.
Numbers = tuple[tuple[int, ...], tuple[float, ...]]


def differing(model_type: str, dtype: str) -> tuple[int, int]:
    """Stored numbers that differ from those of all sequences together, and how many were compared."""
    model = tiny_model(model_type).to(DTYPES[dtype])
    loaded = prepare_model(model_type, model, None, torch.device("cpu"))
    together = _decoded(loaded, *TOGETHER)
    wrong = count = 0
    for slots, prefill_tokens in OTHERS:
        found = _decoded(loaded, slots, prefill_tokens, is_shuffled=True)
        for index, (tokens, numbers) in together.items():
            count += len(numbers)
            is_same = found[index][0] == tokens
            wrong += sum(a != b for a, b in zip(numbers, found[index][1], strict=True)) if is_same else len(numbers)
    return wrong, count


def _decoded(loaded: LoadedModel, slots: int, prefill_tokens: int, *, is_shuffled: bool = False) -> dict[int, Numbers]:
    config = EngineConfig(
        max_num_seqs=slots, prefill_tokens=prefill_tokens, kv_memory=0.25, block_size=64, share_prefixes=False
    )
    requests = _requests(loaded.limits.vocab_size)
    if is_shuffled:
        random.Random(7).shuffle(requests)
    return {output.request_id: _numbers(output.completions[0]) for output in Engine(loaded, config).generate(requests)}


def _numbers(completion: Any) -> Numbers:
    trace = completion.trace
    return completion.token_ids, (*trace.logprobs, *trace.sampling_logprobs)


def _requests(vocab_size: int) -> list[Request]:
    """Greedy and sampled ones in turn, of 1 to 150 tokens."""
    rng = random.Random(3)
    return [
        Request(
            index,
            tuple(rng.randrange(len(TOKEN_IDS), vocab_size) for _ in range(rng.choice((1, 2, 7, 20, 64, 65, 90, 150)))),
            GenerationParams.model_validate(
                {
                    "max_new_tokens": MAX_NEW_TOKENS, "ignore_eos": True, "seed": index,
                    "strategy": ("greedy", "sample")[index % 2],
                }
            ),
        )
        for index in range(NUM_SEQUENCES)
    ]  # fmt: skip
