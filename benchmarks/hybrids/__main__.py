"""Decode steps of a hybrid beside what they cannot do without: its bare matmuls, and its states read and written once.

    python -m benchmarks.hybrids --running 16 64 --generate

The shape is that of Qwen3.5-0.8B (24 layers, of which 18 are Gated DeltaNets), with random weights in bf16. A step and
its bound are measured in turns; the bound's matmuls are the engine's own kernels. Prints the median of both, the share
of the step that the bound takes, and with --generate the rate of `generate` on as many sequences.
"""

from __future__ import annotations

import argparse
import random
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.support.timing import timed
from models.params import GenerationParams
from worker.engine.backend import LoadOptions
from worker.engine.config import EngineConfig
from worker.engine.cpu.backend import CpuBackend
from worker.engine.cpu.kernels import cpu_kernels
from worker.engine.cpu.linear import GemmLinear
from worker.engine.engine import Engine
from worker.engine.model.linear import MakeLinear, PlainLinear
from worker.engine.model.step_batch import MIN_ROWS
from worker.engine.model_loader import LoadedModel, prepare_model
from worker.engine.request import Request

VOCAB = 248_320
GENERATED = 8  # tokens of each sequence by `generate`
PERIOD = 4  # every fourth layer has full attention

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def hybrid(num_layers: int) -> Any:
    """The model, with random weights; the same ones at every call."""
    kinds = ["full_attention" if (index + 1) % PERIOD == 0 else "linear_attention" for index in range(num_layers)]
    config = AutoConfig.for_model("qwen3_5_text", **SHAPE | {"num_hidden_layers": num_layers, "layer_types": kinds})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)


class Bound:
    """The matmuls of a decode step, each of them packed by itself, and a multiplication of the states in place."""

    def __init__(self, model: Any, make_linear: MakeLinear, most: int) -> None:
        linears = [module for module in model.modules() if type(module) is nn.Linear]
        self._linears = [make_linear([linear]) for linear in linears]
        config = model.config
        num_states = sum(kind == "linear_attention" for kind in config.layer_types)
        heads, key_dim = config.linear_num_value_heads, config.linear_key_head_dim
        shape = (most, heads, key_dim, config.linear_value_head_dim)
        self._states = [torch.zeros(shape) for _ in range(num_states)]

    def matmuls(self, inputs: dict[int, Tensor]) -> None:
        for linear in self._linears:
            linear(inputs[linear.in_features])

    def states(self, count: int) -> None:
        for state in self._states:
            state[:count].mul_(0.999)

    def inputs(self, count: int) -> dict[int, Tensor]:
        """Rows for each width."""
        rows = max(MIN_ROWS, count)
        return {width: torch.randn(rows, width).bfloat16() for width in {each.in_features for each in self._linears}}


def decoding(loaded: LoadedModel, count: int, num_steps: int) -> Engine:
    """An engine whose prompts are prefilled, with tokens left for `num_steps`."""
    engine = Engine(loaded, EngineConfig(max_num_seqs=count, kv_memory=2.5))
    params = GenerationParams(max_new_tokens=num_steps + 20, ignore_eos=True, trace="none")
    for index, prompt_ids in enumerate(prompts(count)):
        engine.submit(Request(index, prompt_ids, params))
    while engine.stats.num_generated_tokens < 2 * count:
        engine.step()
    return engine


def prompts(count: int) -> list[tuple[int, ...]]:
    rng = random.Random(0)
    return [tuple(rng.choices(range(10, VOCAB), k=32)) for _ in range(count)]


def generate_rate(model: Any, count: int, num_tokens: int) -> float:
    """Tokens a second of `generate` on a batch of prompts, which it prefills in that time."""
    ids = torch.tensor(prompts(count))
    mask, lengths = torch.ones_like(ids), {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
    return count * num_tokens / timed(lambda: model.generate(ids, attention_mask=mask, do_sample=False, **lengths))


def measure(loaded: LoadedModel, bound: Bound, count: int, num_steps: int) -> None:
    """Prints the seconds of a step, of its bound, and their share."""
    engine, inputs = decoding(loaded, count, num_steps), bound.inputs(count)
    rounds = [
        (timed(engine.step), timed(lambda: bound.matmuls(inputs)), timed(lambda: bound.states(count)))
        for _ in range(num_steps)
    ]
    step, matmuls, states = (median(column) for column in zip(*rounds, strict=True))
    least = median(sum(each[1:]) for each in rounds)
    print(
        f"{count:3} running: step {1000 * step:6.1f} ms, bound {1000 * least:6.1f} ms (matmuls {1000 * matmuls:.1f}, "
        f"states {1000 * states:.1f}): {least / step:.0%}, {count / step:.1f} tokens/s",
        flush=True,
    )


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--running", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--layers", type=int, default=24, help="of the model; fewer for a quick look")
    parser.add_argument("--generate", action="store_true", help="measure generate too")
    parser.add_argument(
        "--generic", action="store_true", help="call the layers' own code, as for layers of other kinds"
    )
    given = parser.parse_args()
    CpuBackend.prepare_process(torch.bfloat16, LoadOptions())
    kernels = cpu_kernels(torch.bfloat16)

    def make_linear(linears: Any, *, is_gate_up: bool = False) -> Any:
        if kernels is not None and kernels.has_matmul:
            return GemmLinear(linears, kernels, is_gate_up=is_gate_up)
        return PlainLinear(linears, is_gate_up=is_gate_up)

    bound = Bound(hybrid(given.layers), make_linear, max(given.running))
    options = LoadOptions(fuse=not given.generic)
    loaded = prepare_model("hybrid", hybrid(given.layers), None, torch.device("cpu"), options)
    for count in given.running:
        measure(loaded, bound, count, given.steps)
    del loaded, bound
    if given.generate:
        model = hybrid(given.layers)
        for count in given.running:
            print(f"{count:3} running: generate {generate_rate(model, count, GENERATED):.1f} tokens/s", flush=True)


if __name__ == "__main__":
    main()
