"""A layer of experts at full width, alternately with the bare packed matmuls of the same rows, and Transformers' own.

    python -m benchmarks.layers.experts --shapes olmoe qwen3_moe gpt_oss --running 16 64 --dtype bfloat16

Prints the best of some rounds in milliseconds, and how many times the bare matmuls the layer takes. The matmuls alone
read each chosen expert's weights once; choosing, gathering and adding up is the layer's own. `--processor-time` takes
one thread and its processor time, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from functools import partial
from time import process_time
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from benchmarks.support.timing import timed
from worker.engine.backend import LoadOptions
from worker.engine.batch_invariance import align_activations
from worker.engine.cpu.backend import _kernels, _make_linear
from worker.engine.model.experts import EXPERTS_NAME, PackedExperts, pack_experts, packed_experts

#: OLMoE-1B-7B, Qwen3-30B-A3B and gpt-oss-20b.
SHAPES: dict[str, tuple[Any, dict[str, int]]] = {
    "olmoe": (
        OlmoeExperts,
        {"hidden_size": 2048, "intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8},
    ),
    "qwen3_moe": (
        Qwen3MoeExperts,
        {"hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8},
    ),
    "gpt_oss": (
        GptOssExperts,
        {"hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 32, "num_experts_per_tok": 4},
    ),
}
#: Transformers' own, by their names there.
OTHERS = ("eager", "grouped_mm")


def processor_seconds(action: Callable[[], object]) -> float:
    started = process_time()
    action()
    return process_time() - started


class Layer:
    """Experts with random weights, first as Transformers has them and then packed."""

    def __init__(self, shape: str, dtype: torch.dtype) -> None:
        make, fields = SHAPES[shape]
        self._config = AutoConfig.for_model(shape, **fields)
        self.num_chosen = fields["num_experts_per_tok"]
        self.num_experts = fields.get("num_experts") or fields["num_local_experts"]
        self.hidden_size = fields["hidden_size"]
        self._dtype = dtype
        with torch.device("meta"):
            self.experts: Any = make(self._config).to(dtype)
        self.experts.to_empty(device="cpu")
        for parameter in self.experts.parameters():
            parameter.detach().uniform_(-0.05, 0.05)

    def compute_as(self, implementation: str) -> None:
        self.experts.config = copy.copy(self._config)
        self.experts.config._experts_implementation = implementation

    def pack(self) -> PackedExperts:
        align_activations(self.experts)
        pack_experts(self.experts, _make_linear(self._dtype, _kernels(self._dtype, LoadOptions())))
        self.compute_as(EXPERTS_NAME)
        return packed_experts(self.experts)

    def rows(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, the experts of each, and these experts' weights."""
        generator = torch.Generator().manual_seed(count)
        scores = torch.rand(count, self.num_experts, generator=generator)
        weights, chosen = scores.topk(self.num_chosen)
        rows = torch.randn(count, self.hidden_size, generator=generator).to(self._dtype)
        return rows, chosen, (weights / weights.sum(-1, keepdim=True)).to(self._dtype)


def bare_matmuls(packed: PackedExperts, rows: Tensor, chosen: Tensor) -> Callable[[], None]:
    """The matmuls of each expert that somebody chose, on as many rows, which lie ready."""
    counts = torch.bincount(chosen.reshape(-1)).tolist()
    inputs = [rows[:1].expand(max(count, 2), -1).contiguous() for count in counts]
    middles = [packed.activated(packed.up[0], each) for each in inputs]

    def run() -> None:
        for expert, count in enumerate(counts):
            if count:
                packed.up[expert](inputs[expert])
                packed.down[expert](middles[expert])

    return run


@torch.inference_mode()
def measure(
    shape: str, dtype: torch.dtype, running: list[int], rounds: int, timed: Callable[[Callable[[], object]], float]
) -> None:
    layer = Layer(shape, dtype)
    others: dict[tuple[int, str], float] = {}
    for count in running:
        for name in OTHERS:
            layer.compute_as(name)
            own = partial(layer.experts, *layer.rows(count))
            others[count, name] = min(timed(own) for _ in range(rounds))
    packed = layer.pack()
    for count in running:
        given = layer.rows(count)
        actions: dict[str, Callable[[], object]] = {
            "ours": partial(layer.experts, *given),
            "bare": bare_matmuls(packed, given[0], given[1]),
        }
        times: dict[str, list[float]] = {name: [] for name in actions}
        for _ in range(rounds):
            for name, action in actions.items():
                times[name].append(timed(action))
        best = {name: 1000 * min(values) for name, values in times.items()}
        best |= {name: 1000 * others[count, name] for name in OTHERS}
        parts = ", ".join(f"{name} {value:.1f} ms" for name, value in best.items())
        print(f"{shape}, {count} running: {parts}; {best['ours'] / best['bare']:.2f} x the bare matmuls", flush=True)
        print(json.dumps({"shape": shape, "running": count, **best}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--running", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--processor-time", action="store_true")
    given = parser.parse_args()
    if given.processor_time:
        torch.set_num_threads(1)
    for shape in given.shapes:
        timer = processor_seconds if given.processor_time else timed
        measure(shape, getattr(torch, given.dtype), given.running, given.rounds, timer)


if __name__ == "__main__":
    main()
