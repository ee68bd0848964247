"""Part two: the toy model's greedy tokens beside a CPU's, synchronizations of plain steps, and memcheck.

The CPU's tokens are decoded beforehand and stored: `python -m benchmarks.gpu.tokens` writes the file anew.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.bound import decode_with
from benchmarks.gpu.limited import run_limited
from benchmarks.gpu.setting import Setting
from benchmarks.support.workload import TOY_MODEL
from models.params import GenerationParams
from worker.engine.config import EngineConfig
from worker.engine.cuda.decode_graphs import waiting_refused
from worker.engine.engine import Engine
from worker.engine.model_loader import LoadedModel, load_model
from worker.engine.request import Request

ROOT = Path(__file__).parents[2]
STORED = Path(__file__).with_name("toy_tokens.json")
NUM_PROMPTS, NUM_TOKENS, NUM_WARM_STEPS = 64, 48, 8

Tokens = dict[str, list[int]]


def measure(setting: Setting) -> None:
    stored = json.loads(STORED.read_text())
    for dtype in ("float32",) if setting.is_tiny else ("float32", "bfloat16"):
        setting.attempt(dtype, partial(compare_stored, setting, dtype, stored[dtype]))
    if setting.device.type == "cuda":
        setting.attempt("synchronizations", lambda: look_for_synchronizations(setting))
        setting.attempt("memcheck", lambda: check_memory(setting))


def compare_stored(setting: Setting, dtype: str, stored: Tokens) -> None:
    compare(dtype, tokens_of(str(setting.device), dtype, 8 if setting.is_tiny else NUM_PROMPTS), stored)


def tokens_of(device: str, dtype: str, num_prompts: int = NUM_PROMPTS) -> Tokens:
    """Greedy answers of the toy model by prompt."""
    loaded = load_model(str(TOY_MODEL), device, dtype)
    if loaded.verdict is None or loaded.verdict.path != "packed":  # the tokens would be right, and of no use
        raise RuntimeError(f"the toy model is not decoded on the kernels: {loaded.verdict}")
    engine = Engine(loaded, EngineConfig(max_num_seqs=16, kv_memory=0.2))
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
        setting.attempt(f"plain steps, {strategy}", partial(plain_steps, setting, loaded, strategy))


def plain_steps(setting: Setting, loaded: LoadedModel, strategy: str) -> None:
    engine = Engine(loaded, EngineConfig(max_num_seqs=16, kv_memory=2.0))
    params: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 4 * NUM_WARM_STEPS, "strategy": strategy}
    if strategy == "nucleus":
        params["top_p"] = 0.9
    for number in range(16):
        engine.submit(Request(number, (number + 10, 11, 12), GenerationParams(seed=number, **params)))
    decode_with(engine, NUM_WARM_STEPS)
    try:
        with waiting_refused():
            decode_with(engine, NUM_WARM_STEPS)
    except RuntimeError as error:
        setting.tell_failure(f"plain steps, {strategy}: A SYNCHRONIZATION: {str(error).splitlines()[0]}")
    else:
        print(f"plain steps, {strategy}: none waits for the device", flush=True)


def check_memory(setting: Setting) -> None:
    """The toy model once more, under compute-sanitizer where there is one."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        print("compute-sanitizer is not here", flush=True)
        return
    program = "import sys; from benchmarks.gpu.tokens import tokens_of; tokens_of(sys.argv[1], 'bfloat16', 4)"
    command = [tool, "--tool", "memcheck", sys.executable, "-c", program, str(setting.device)]
    seconds = min(200.0, setting.seconds_left)
    ended = run_limited(command, seconds, cwd=ROOT)
    if ended.status is None:
        print(f"memcheck did not end within {seconds:.0f} s", flush=True)
        return
    found = re.search(r"ERROR SUMMARY: (\d+) errors?", ended.stdout + ended.stderr)
    setting.tell(f"memcheck: {found[0] if found else ended.last_line}", found is not None and found[1] == "0")


if __name__ == "__main__":
    STORED.write_text(json.dumps({dtype: tokens_of("cpu", dtype) for dtype in ("float32", "bfloat16")}) + "\n")
