"""CTranslate2's generator: python run_ctranslate2.py MODEL REQUESTS DTYPE, DTYPE bf16, f32 or int8.

Needs ctranslate2 and transformers. It has no continuous batching: batches of sequences of like lengths.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ctranslate2
from loop import requests_of, serve

BATCH = 64


def converted(model: Path) -> Path:
    target = model.with_name(f"{model.name}-ctranslate2")
    if not target.exists():
        ctranslate2.converters.TransformersConverter(str(model)).convert(str(target))
    return target


def main() -> None:
    model, dtype = converted(Path(sys.argv[1])), sys.argv[3]
    requests = requests_of(sys.argv[2])
    compute = {"bf16": "bfloat16", "f32": "float32", "int8": "int8"}[dtype]
    generator = ctranslate2.Generator(str(model), compute_type=compute, intra_threads=2)
    vocabulary = [f"t{number}" for number in range(151_936)]
    prompts = [[vocabulary[token_id] for token_id in request["prompt_ids"]] for request in requests]

    def decode() -> int:
        num_tokens = 0
        order = sorted(range(len(requests)), key=lambda number: requests[number]["max_new_tokens"])
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            longest = max(requests[number]["max_new_tokens"] for number in batch)
            generator.generate_batch(
                [prompts[number] for number in batch], max_length=longest, min_length=longest, sampling_topk=1,
                include_prompt_in_result=False, max_batch_size=BATCH,
            )  # fmt: skip
            num_tokens += sum(requests[number]["max_new_tokens"] for number in batch)
        return num_tokens

    serve(decode)


if __name__ == "__main__":
    main()
