"""One contender in its own process: `python -m benchmarks.gpu.peer NAME JSON`, the JSON made by `peers.py`."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.setting import Setting
from benchmarks.support.workload import TOY_MODEL
from worker.engine.request import Request

#: Decodes all requests; with it comes a word about how.
Contender = tuple[Callable[[], object], str]


def ours(setting: Setting, requests: Sequence[Request]) -> Contender:
    from benchmarks.gpu.bound import decode

    loaded = setting.loaded()
    attention = loaded.model.paged_attention
    told = "SDPA tiles" if attention is None else type(attention).__name__
    return lambda: decode(loaded, requests, **setting.sizes), told


def transformers_way(name: str) -> Callable[[Setting, Sequence[Request]], Contender]:
    def contender(setting: Setting, requests: Sequence[Request]) -> Contender:
        from benchmarks.throughput import Transformers

        peer = Transformers(setting.plain_model(), static_batch=min(64, setting.max_num_seqs))
        peer.requests = requests
        return getattr(peer, name), f"attention {peer.model.config._attn_implementation}"

    return contender


def nano_vllm(setting: Setting, requests: Sequence[Request]) -> Contender:
    from nanovllm import LLM, SamplingParams

    engine = LLM(saved_model(setting), max_model_len=2 * setting.longest, max_num_seqs=setting.max_num_seqs)
    prompts = [list(request.prompt_ids) for request in requests]
    params = [
        SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=request.params.max_new_tokens)
        for request in requests
    ]
    return lambda: engine.generate(prompts, params, use_tqdm=False), "sampled at 0.6: it has no greedy"


def vllm(setting: Setting, requests: Sequence[Request]) -> Contender:
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=saved_model(setting), dtype="bfloat16", max_model_len=2 * setting.longest,
        max_num_seqs=setting.max_num_seqs, enable_prefix_caching=False,
    )  # fmt: skip
    prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
    params = [
        SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=request.params.max_new_tokens, detokenize=False)
        for request in requests
    ]
    return lambda: engine.generate(prompts, params, use_tqdm=False), "greedy"


def saved_model(setting: Setting) -> str:
    """A folder with the shape's random weights; the tokenizer is the toy model's, which nobody uses."""
    folder = Path(tempfile.mkdtemp(prefix="nocturne-peer-"))
    setting.plain_model().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOY_MODEL / name, folder)
    return str(folder)


CONTENDERS: dict[str, Callable[[Setting, Sequence[Request]], Contender]] = {
    "ours": ours,
    "continuous": transformers_way("continuous"),
    "static": transformers_way("static"),
    "nano_vllm": nano_vllm,
    "vllm": vllm,
}


def main() -> None:
    name, given = sys.argv[1], json.loads(sys.argv[2])
    setting = Setting(
        torch.device(given["device"]), given["shape"], [given["count"]], given["max_num_seqs"], given["longest"],
        given["is_tiny"],
    )  # fmt: skip
    decode, told = CONTENDERS[name](setting, setting.requests(given["count"]))
    seconds: list[Any] = [setting.seconds(decode) for _ in range(2)]
    print(json.dumps({"seconds": seconds[-1], "told": told}))


if __name__ == "__main__":
    main()
