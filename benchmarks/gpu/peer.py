"""One contender in its own process: `python -m benchmarks.gpu.peer NAME JSON`, the JSON made by `peers.py`."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.setting import Setting
from benchmarks.support.workload import TOY_MODEL
from worker.engine.request import Request

#: Decodes all of the requests given; with it comes a word about how.
Contender = tuple[Callable[[Sequence[Request]], object], str]

#: Requests that are decoded before the clock starts: kernels are compiled, and graphs recorded.
NUM_WARM_REQUESTS, NUM_WARM_TOKENS = 2, 16


def ours(setting: Setting) -> Contender:
    from benchmarks.gpu.bound import decode, engine_of

    loaded = setting.loaded()
    attention = loaded.model.paged_attention
    told = "SDPA tiles" if attention is None else type(attention).__name__
    return partial(decode, engine_of(loaded, **setting.sizes)), told


def transformers_way(name: str) -> Callable[[Setting], Contender]:
    def contender(setting: Setting) -> Contender:
        from benchmarks.throughput import Transformers

        peer = Transformers(setting.plain_model(), static_batch=setting.max_num_seqs)

        def run(requests: Sequence[Request]) -> None:
            peer.requests = requests
            getattr(peer, name)()

        return run, f"attention {peer.model.config._attn_implementation}"

    return contender


def nano_vllm(setting: Setting) -> Contender:
    from nanovllm import LLM, SamplingParams

    engine = LLM(saved_model(setting), max_model_len=2 * setting.longest, max_num_seqs=setting.max_num_seqs)

    def run(requests: Sequence[Request]) -> None:
        params = [
            SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=request.params.max_new_tokens)
            for request in requests
        ]
        engine.generate([list(request.prompt_ids) for request in requests], params, use_tqdm=False)

    return run, "sampled at 0.6: it has no greedy"


def vllm(setting: Setting) -> Contender:
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=saved_model(setting), dtype="bfloat16", max_model_len=2 * setting.longest,
        max_num_seqs=setting.max_num_seqs, enable_prefix_caching=False,
    )  # fmt: skip

    def run(requests: Sequence[Request]) -> None:
        params = [
            SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=request.params.max_new_tokens, detokenize=False)
            for request in requests
        ]
        engine.generate([{"prompt_token_ids": list(each.prompt_ids)} for each in requests], params, use_tqdm=False)

    return run, "greedy"


def saved_model(setting: Setting) -> str:
    """A folder with the shape's random weights; the tokenizer is the toy model's, which nobody uses."""
    folder = Path(tempfile.mkdtemp(prefix="nocturne-peer-"))
    setting.plain_model().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOY_MODEL / name, folder)
    return str(folder)


CONTENDERS: dict[str, Callable[[Setting], Contender]] = {
    "ours": ours,
    "continuous": transformers_way("continuous"),
    "static": transformers_way("static"),
    "nano_vllm": nano_vllm,
    "vllm": vllm,
}


def warm_requests(setting: Setting) -> list[Request]:
    """Short answers: two alone would take a peer half of its time."""
    given = setting.requests(NUM_WARM_REQUESTS)
    cut = {"max_new_tokens": min(NUM_WARM_TOKENS, setting.longest)}
    return [replace(each, params=each.params.model_copy(update=cut)) for each in given]


def main() -> None:
    name, given = sys.argv[1], json.loads(sys.argv[2])
    setting = Setting(
        torch.device(given["device"]), given["shape"], [given["count"]], given["max_num_seqs"], given["longest"],
        given["is_tiny"],
    )  # fmt: skip
    decode, told = CONTENDERS[name](setting)
    decode(warm_requests(setting))
    seconds = setting.seconds(lambda: decode(setting.requests(given["count"])))
    print(json.dumps({"seconds": seconds, "told": told}))


if __name__ == "__main__":
    main()
