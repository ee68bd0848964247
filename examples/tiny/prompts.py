"""Writes `examples/prompts.jsonl`: varied requests of the two kinds that the toy model was trained on.

    python examples/tiny/prompts.py --count 600 --output examples/prompts.jsonl

Strategies, plain prompts and chat messages, numbers of samples and stop strings are mixed, as in a night's file.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from compose import STORY_SYSTEM, TRANSFER_SYSTEM, chatml, story_request, transfer_request

STRATEGY_WEIGHTS = {"greedy": 40, "sample": 25, "nucleus": 25, "beam": 10}


def parameters(rng: random.Random) -> dict[str, Any]:
    """The decoding parameters of one line."""
    strategy = rng.choices(list(STRATEGY_WEIGHTS), list(STRATEGY_WEIGHTS.values()))[0]
    params: dict[str, Any] = {"strategy": strategy, "max_new_tokens": rng.choice([64, 128, 256, 400])}
    if strategy in ("sample", "nucleus"):
        params["temperature"] = rng.choice([0.3, 0.7, 1.0])
        params["n"] = rng.choice([1, 1, 1, 2, 4])
    if strategy == "sample" and rng.random() < 0.3:
        params["top_k"] = rng.choice([5, 50])
    if strategy == "nucleus":
        params["top_p"] = rng.choice([0.5, 0.9])
    if strategy == "beam":
        params |= {"num_beams": rng.choice([2, 4]), "length_penalty": rng.choice([0.5, 1.0, 2.0])}
    if rng.random() < 0.05:
        params["top_logprobs"] = 3
    return params


def line(number: int, rng: random.Random) -> dict[str, Any]:
    """One request with its parameters; every third is given as chat messages."""
    is_story = rng.random() < 0.6
    system, text = (STORY_SYSTEM, story_request(rng)[0]) if is_story else (TRANSFER_SYSTEM, transfer_request(rng)[0])
    kind = "story" if is_story else "transfer"
    record: dict[str, Any] = {"custom_id": f"{kind}-{number:04d}"}
    if number % 3:
        record["prompt"] = chatml(system, text)
    else:
        record["messages"] = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    record |= parameters(rng)
    if is_story and rng.random() < 0.1:
        record["stop"] = ["."]
    return record | {"kind": kind}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("examples/prompts.jsonl"))
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with given.output.open("w", encoding="utf-8") as file:
        for number in range(1, given.count + 1):
            file.write(json.dumps(line(number, rng)) + "\n")
    print(f"{given.count} requests written to {given.output}")


if __name__ == "__main__":
    main()
