"""Measures all that is claimed of a GPU, in five parts of at most five minutes each, on a machine without a network.

    python -m benchmarks.gpu kernels     attention, sampler and matmuls against float64, and their times
    python -m benchmarks.gpu tokens      the toy model's tokens beside stored ones, synchronizations, memcheck
    python -m benchmarks.gpu profile     twenty steps: kernels, launches, gaps
    python -m benchmarks.gpu whole       tokens/s of whole runs beside the bound, variants, batch invariance
    python -m benchmarks.gpu peers       the same requests by Transformers, nano-vllm and vLLM, where installed

Needs torch, transformers, pydantic and this repository; `python -m benchmarks.gpu.wheels` collects what a machine may
lack. Every part prints as it goes; a case that fails is named, and the next one goes on. `--device cpu --tiny` tries
the scripts themselves.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import torch

from benchmarks.gpu.setting import SHAPES, Setting

PARTS = ("kernels", "tokens", "profile", "whole", "peers")


def main(arguments: Sequence[str] | None = None) -> int:
    """Ends with 1 where a case failed or is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--model", choices=SHAPES, default="qwen2-0.5b", help="the shape; its weights are random")
    parser.add_argument("--requests", type=int, nargs="+", default=None, help="256 and 1024; peers take 256 alone")
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--longest", type=int, default=1024, help="tokens of the longest prompt and answer")
    parser.add_argument("--peers", default="continuous,static,nano_vllm,vllm")
    parser.add_argument("--peer-seconds", type=float, default=100.0, help="a peer is ended after so long")
    parser.add_argument("--seconds", type=float, default=270.0, help="no case begins after so long")
    parser.add_argument("--tiny", action="store_true", help="two layers and short requests")
    given = parser.parse_args(arguments)
    if given.requests is None:
        given.requests = [256] if given.part == "peers" else [256, 1024]
    if given.tiny:
        given.requests, given.max_num_seqs, given.longest = [6], 4, 20
    setting = Setting(
        torch.device(given.device), given.model, given.requests, given.max_num_seqs, given.longest, given.tiny,
        tuple(filter(None, given.peers.split(","))), given.peer_seconds, given.seconds,
    )  # fmt: skip
    print(setting.title, flush=True)
    importlib.import_module(f"benchmarks.gpu.{given.part}").measure(setting)
    print(f"{given.part}: {len(setting.failed)} cases failed or are wrong", *setting.failed, sep="\n  ", flush=True)
    return int(bool(setting.failed))


if __name__ == "__main__":
    sys.exit(main())
