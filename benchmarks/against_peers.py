"""Ours beside other engines, alternately, on the same requests; each peer runs in an environment of its own.

    python -m venv .peers && .peers/bin/pip install openvino-genai "optimum-intel[openvino]" ctranslate2
    python -m benchmarks.against_peers --python .peers/bin/python --peers openvino:bf16 --requests 64

Saves Qwen2-0.5B's shape with random weights for them. Prints useful tokens/s, the median of the rounds, and the
ratio to each.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Self

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from benchmarks.support.timing import alternate, print_rate, timed
from benchmarks.support.workload import TOY_MODEL, VOCAB, long_tailed, qwen2_half_billion
from benchmarks.throughput import Contenders
from worker.engine.request import Request

PEERS = Path(__file__).parent / "peers"


class Peer:
    """A peer's process, which decodes all requests at each call of `seconds`."""

    def __init__(self, python: str, name: str, dtype: str, model: Path, requests: Path) -> None:
        self.name = f"{name} {dtype}"
        command = [python, str(PEERS / f"run_{name}.py"), str(model), str(requests), dtype]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read("ready")

    def seconds(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(json.loads(self._read("{"))["seconds"])

    def _read(self, beginning: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(beginning):
                return line
        raise SystemExit(f"{self.name} ended with exit code {self._process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()


def save_model(folder: Path) -> Path:
    """Saves weights as safetensors with a tokenizer that names every id, which converters need; once a folder."""
    target = folder / "qwen2-0.5b-random"
    if target.exists():
        return target
    qwen2_half_billion(torch.bfloat16).save_pretrained(target)
    tokenizer = Tokenizer(models.WordLevel({f"t{number}": number for number in range(VOCAB)}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="t0", eos_token="t1", unk_token="t0").save_pretrained(
        target
    )
    return target


def save_model_for_text(folder: Path) -> Path:
    """The same weights with the toy model's tokenizer, for prompts of text: only BPE fits the architecture."""
    model, target = save_model(folder), folder / "qwen2-0.5b-random-words"
    if not target.exists():
        target.mkdir()
        for path in model.glob("*"):
            if not path.name.startswith("tokenizer"):
                (target / path.name).symlink_to(path.resolve())
        for path in TOY_MODEL.glob("tokenizer*"):
            shutil.copy(path, target)
    return target


def save_requests(folder: Path, requests: Sequence[Request]) -> Path:
    path = folder / "requests.json"
    plain = [{"prompt_ids": r.prompt_ids, "max_new_tokens": r.params.max_new_tokens} for r in requests]
    path.write_text(json.dumps(plain))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="the peers' interpreter")
    parser.add_argument("--peers", nargs="+", default=["openvino:bf16"])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--quantize", choices=["none", "int8"], default="none", help="for ours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for the models, kept for the next call; default: a temporary one")
    given = parser.parse_args()
    requests = long_tailed(given.requests)
    num_tokens = sum(request.params.max_new_tokens for request in requests)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        model = save_model(folder)
        path = save_requests(folder, requests)
        contenders = Contenders(torch.bfloat16, requests, given.max_num_seqs, static_batch=64, quantize=given.quantize)
        for peer_name in given.peers:
            name, _, dtype = peer_name.partition(":")
            with Peer(given.python, name, dtype, model, path) as peer:
                ours = partial(timed, partial(contenders.run, "ours"))
                measured = alternate({"ours": ours, peer.name: peer.seconds}, given.rounds, print_rate(num_tokens, 24))
            for who, values in measured.items():
                seconds.setdefault(who, []).extend(values)
    median_of_ours = statistics.median(seconds["ours"])
    print(f"\n{len(requests)} requests, {num_tokens} tokens")
    for who, values in seconds.items():
        middle = statistics.median(values)
        print(f"{who:24} {num_tokens / middle:8.1f} tokens/s   ours is {middle / median_of_ours:.2f} x as fast")
    print(json.dumps({"tokens": num_tokens, "seconds": seconds}))


if __name__ == "__main__":
    main()
