"""The model and the requests of the benchmarks: Qwen2-0.5B's shape with random weights, and long-tailed lengths."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from models.params import GenerationParams
from models.states import Quantization
from worker.engine.backend import LoadOptions
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.model_loader import prepare_model
from worker.engine.request import Request

VOCAB = 151_936
TOY_MODEL = Path(__file__).parents[2] / "examples" / "tiny" / "model"


def qwen2_half_billion_config(num_layers: int = 24) -> Qwen2Config:
    """24 layers of 896, 14 heads over 2 KV heads, tied embeddings."""
    return Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=num_layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )


def qwen2_half_billion(dtype: torch.dtype, num_layers: int = 24) -> Any:
    """Qwen2-0.5B's shape with random weights, on the CPU."""
    return random_model(qwen2_half_billion_config(num_layers), dtype, torch.device("cpu"))


def random_model(config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A model of Llama's family with random weights that are made on the device."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    model = model.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02)
    model.tie_weights()
    # Buffers that are computed instead of stored must be made anew after the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    return model.eval().requires_grad_(False)


def engine_for(dtype: torch.dtype, *, quantize: Quantization = "none", **config: Any) -> Engine:
    """An engine with that model on the CPU."""
    model = qwen2_half_billion(dtype)
    loaded = prepare_model("qwen2-0.5b-random", model, None, torch.device("cpu"), LoadOptions(quantize=quantize))
    return Engine(loaded, EngineConfig(**{"kv_memory": 2.0, **config}))


def long_tailed(count: int, seed: int = 0) -> list[Request]:
    """Requests with prompts of 16 … 64 ids; forced output lengths from a log-normal cut to 8 … 256."""
    rng = random.Random(seed)
    requests = []
    for index in range(count):
        prompt_ids = tuple(rng.choices(range(10, 150_000), k=rng.randint(16, 64)))
        length = min(256, max(8, round(rng.lognormvariate(3.4, 0.9))))
        params = GenerationParams(max_new_tokens=length, ignore_eos=True, trace="none")
        requests.append(Request(index, prompt_ids, params))
    return requests
