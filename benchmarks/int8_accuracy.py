"""The toy model's answers in int8 beside fp32: greedy agreement and the error of the stored logprobs.

    python -m benchmarks.int8_accuracy --prompts 300

Against fp32 on the same prompts: answers that are equal, tokens before the first difference, and over those tokens the
error of the logprobs.
"""

from __future__ import annotations

import argparse
import json
from itertools import takewhile
from pathlib import Path
from statistics import mean, median

from models.params import GenerationParams
from models.states import Quantization
from worker.engine.engine import Engine
from worker.engine.request import Completion, Request

ROOT = Path(__file__).parent.parent


def greedy_answers(prompts: list[str], *, quantize: Quantization) -> list[Completion]:
    engine = Engine.load(
        str(ROOT / "examples" / "tiny" / "model"), dtype="float32", device="cpu", quantize=quantize, kv_memory=0.5
    )
    params = GenerationParams(max_new_tokens=200)
    found = {
        output.request_id: output.completions[0]
        for output in engine.generate(Request(n, engine.encode(prompt), params) for n, prompt in enumerate(prompts))
    }
    return [found[number] for number in range(len(prompts))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=300)
    lines = (ROOT / "examples" / "prompts.jsonl").read_text().splitlines()[: parser.parse_args().prompts]
    prompts = [json.loads(line)["prompt"] for line in lines if "prompt" in json.loads(line)]
    pairs = list(zip(greedy_answers(prompts, quantize="none"), greedy_answers(prompts, quantize="int8"), strict=True))
    agreeing = [
        len(list(takewhile(lambda ids: ids[0] == ids[1], zip(exact.token_ids, int8.token_ids, strict=False))))
        for exact, int8 in pairs
    ]
    errors = [
        abs(one - other)
        for (exact, int8), count in zip(pairs, agreeing, strict=True)
        if exact.trace is not None and int8.trace is not None
        for one, other in zip(exact.trace.logprobs[:count], int8.trace.logprobs[:count], strict=True)
    ]
    num_equal = sum(exact.token_ids == int8.token_ids for exact, int8 in pairs)
    num_tokens = sum(len(exact.token_ids) for exact, _ in pairs)
    print(f"{len(pairs)} prompts, {num_tokens} tokens: {num_equal / len(pairs):.1%} of the answers are equal")
    print(f"tokens before the first difference: {sum(agreeing) / num_tokens:.1%}")
    print(
        f"error of the logprobs: mean {mean(errors):.4f}, median {median(errors):.5f}, largest {max(errors):.3f} nats"
    )


if __name__ == "__main__":
    main()
