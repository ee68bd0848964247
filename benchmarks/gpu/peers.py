"""Part five: the same requests by ours and by others, each in a process of its own that is ended when it is late.

Every contender decodes a few requests to warm up, then all of them once. Prompts and forced lengths are nano-vllm's
workload: 100 to 1,024 ids in and out.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.limited import run_limited
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
        told = line("ours", ours, num_tokens, ours)
        if ours.seconds is None:
            setting.tell_failure(told)
        else:
            print(told, flush=True)
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
    seconds = min(setting.peer_seconds, setting.seconds_left)
    if seconds <= 0:
        return Outcome(None, f"left out, the part has taken {setting.budget_seconds:.0f} s")
    ended = run_limited([sys.executable, "-m", "benchmarks.gpu.peer", name, json.dumps(given)], seconds, cwd=ROOT)
    if ended.status is None:
        return Outcome(None, f"did not end within {seconds:g} s")
    try:
        answer = json.loads(ended.stdout.strip().splitlines()[-1])
        return Outcome(answer["seconds"], answer["told"])
    except (ValueError, IndexError, TypeError, KeyError):  # it ended before its last line
        return Outcome(None, f"failed: {ended.last_line[:300]}")
