"""Part five: the same requests by ours and by others, each in a process of its own that is ended when it is late.

Every contender decodes all requests twice, in turn; the second time counts. Prompts and forced lengths are nano-vllm's
workload: 100 to 1,024 ids in and out.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.setting import Setting, num_output_tokens

ROOT = Path(__file__).parents[2]

#: The module that a peer needs.
NEEDS = {
    "ours": "torch",
    "continuous": "transformers",
    "static": "transformers",
    "nano_vllm": "nanovllm",
    "vllm": "vllm",
}


@dataclass(frozen=True)
class Outcome:
    """A contender's best seconds, or the reason why there are none."""

    seconds: float | None
    told: str


def measure(setting: Setting) -> None:
    for count in setting.num_requests:
        num_tokens = num_output_tokens(setting.requests(count))
        print(f"\n{count} requests, {num_tokens} tokens, at most {setting.max_num_seqs} running", flush=True)
        ours = run(setting, "ours", count)
        print(line("ours", ours, num_tokens, ours), flush=True)
        for name in setting.peers:
            print(line(name, run(setting, name, count), num_tokens, ours), flush=True)


def line(name: str, outcome: Outcome, num_tokens: int, ours: Outcome) -> str:
    if outcome.seconds is None:
        return f"{name:12} {outcome.told}"
    ratio = f"ours is {outcome.seconds / ours.seconds:.2f} x as fast" if ours.seconds else "ours did not end"
    return f"{name:12} {num_tokens / outcome.seconds:10,.0f} tokens/s   {ratio}; {outcome.told}"


def run(setting: Setting, name: str, count: int) -> Outcome:
    if name not in NEEDS:
        return Outcome(None, f"is none of {', '.join(NEEDS)}")
    if importlib.util.find_spec(NEEDS[name]) is None:
        return Outcome(None, "is not installed")
    given = {
        "device": str(setting.device), "shape": setting.shape, "count": count, "max_num_seqs": setting.max_num_seqs,
        "longest": setting.longest, "is_tiny": setting.is_tiny,
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.gpu.peer", name, json.dumps(given)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=setting.peer_seconds)
    except subprocess.TimeoutExpired:
        return Outcome(None, f"did not end within {setting.peer_seconds:g} s")
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        return Outcome(None, f"failed: {reason[:300]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    return Outcome(answer["seconds"], answer["told"])
