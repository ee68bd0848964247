"""Part two: the toy model's greedy tokens beside a CPU's, synchronizations of plain steps, and memcheck.

The CPU's tokens are decoded beforehand and stored: `python -m benchmarks.gpu.tokens` writes the file anew.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.gpu.setting import Setting
from benchmarks.support.workload import TOY_MODEL
from models.params import GenerationParams
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.model_loader import load_model
from worker.engine.request import Request

STORED = Path(__file__).with_name("toy_tokens.json")
NUM_PROMPTS, NUM_TOKENS, NUM_WARM_STEPS = 64, 48, 8

Tokens = dict[str, list[int]]


def measure(setting: Setting) -> None:
    stored = json.loads(STORED.read_text())
    for dtype in ("float32",) if setting.is_tiny else ("float32", "bfloat16"):
        compare(dtype, tokens_of(str(setting.device), dtype, 8 if setting.is_tiny else NUM_PROMPTS), stored[dtype])
    if setting.device.type == "cuda":
        look_for_synchronizations(setting)
        check_memory(setting)


def tokens_of(device: str, dtype: str, num_prompts: int = NUM_PROMPTS) -> Tokens:
    """Greedy answers of the toy model by prompt."""
    engine = Engine(load_model(str(TOY_MODEL), device, dtype), EngineConfig(max_num_seqs=16, kv_memory=0.2))
    prompts = [f"Once upon a time, number {number}" for number in range(num_prompts)]
    params = GenerationParams(max_new_tokens=NUM_TOKENS)
    requests = [Request(number, engine.encode(text), params) for number, text in enumerate(prompts)]
    return {prompts[done.request_id]: list(done.completions[0].token_ids) for done in engine.generate(requests)}


def compare(dtype: str, found: Tokens, stored: Tokens) -> None:
    """Prints how many answers are the CPU's, and where the first other one departs."""
    others = [prompt for prompt, ids in found.items() if ids != stored[prompt]]
    print(f"toy model, greedy, {dtype}: {len(others)} of {len(found)} answers differ from the CPU's", flush=True)
    for prompt in others[:3]:
        pairs = enumerate(zip(found[prompt], stored[prompt], strict=False))
        place = next((number for number, (mine, theirs) in pairs if mine != theirs), "the end")
        print(f"  {prompt!r} departs at {place}", flush=True)


def look_for_synchronizations(setting: Setting) -> None:
    """Plain steps in which torch refuses to wait for the device."""
    loaded = setting.loaded()
    for strategy in ("greedy", "sample", "nucleus"):
        engine = Engine(loaded, EngineConfig(max_num_seqs=16))
        top_p = {"top_p": 0.9} if strategy == "nucleus" else {}
        for request in setting.requests(16, strategy=strategy, **top_p):
            engine.submit(request)
        while engine.stats.num_decode_rows < 16 * NUM_WARM_STEPS:
            engine.step()
        try:
            with synchronizations_refused():
                for _ in range(NUM_WARM_STEPS):
                    engine.step()
        except RuntimeError as error:
            print(f"plain steps, {strategy}: A SYNCHRONIZATION: {str(error).splitlines()[0]}", flush=True)
        else:
            print(f"plain steps, {strategy}: none waits for the device", flush=True)


@contextmanager
def synchronizations_refused() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_memory(setting: Setting) -> None:
    """The toy model once more, under compute-sanitizer where there is one."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        print("compute-sanitizer is not here", flush=True)
        return
    program = "import sys; from benchmarks.gpu.tokens import tokens_of; tokens_of(sys.argv[1], 'bfloat16', 4)"
    command = [tool, "--tool", "memcheck", sys.executable, "-c", program, str(setting.device)]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=200)
        print("memcheck:", (told.stdout.strip() or told.stderr.strip()).splitlines()[-1], flush=True)
    except subprocess.TimeoutExpired:
        print("memcheck did not end within 200 s", flush=True)


if __name__ == "__main__":
    STORED.write_text(json.dumps({dtype: tokens_of("cpu", dtype) for dtype in ("float32", "bfloat16")}) + "\n")
