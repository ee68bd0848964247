"""Batch-invariance: the same requests decoded in batches of many sizes and orders, and their bits compared.

    python -m benchmarks.reproducibility --dtype bfloat16 --sequences 256 --tokens 128 --max-num-seqs 1 8 64

Half are greedy, half sampled, with prompts that partly begin alike. At most 64 sequences run in the reference; at most
64, 8 and 1 in the others, in another order and with prefix sharing off. Where one runs alone, every sequence is decoded
once, the first half of them with prefix sharing, the others shuffled and without: that reads all weights 65,536 times.
`--alone` bounds how many these are, and `--max-num-seqs` names the variants of this call. Prints differing sequences
and differing stored logprobs (both should be 0) and each variant's speed; progress and the differences so far go to
stderr. With `--folder` an interrupted call resumes where it was.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.support.workload import engine_for
from models.params import GenerationParams
from models.states import Strategy
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.model_loader import LoadedModel
from worker.engine.request import Request

#: Token ids, logprobs and sampling logprobs.
Answer = tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]
Answers = dict[int, Answer]


@dataclass(frozen=True)
class Variant:
    """A batch size, an order and prefix sharing with which the same requests are decoded."""

    name: str
    max_num_seqs: int
    is_shuffled: bool
    share_prefixes: bool
    part: Literal["all", "first half", "second half"] = "all"

    def requests(self, requests: list[Request]) -> list[Request]:
        """The variant's part of the requests, in its order."""
        half = len(requests) // 2
        chosen = {"all": requests, "first half": requests[:half], "second half": requests[half:]}[self.part]
        return random.Random(2).sample(chosen, len(chosen)) if self.is_shuffled else chosen


REFERENCE = Variant("64 running", 64, False, True)
VARIANTS = [
    Variant("64 running, shuffled", 64, True, True),
    Variant("64 running, no prefix sharing", 64, False, False),
    Variant("8 running, shuffled, no prefix sharing", 8, True, False),
    Variant("8 running", 8, False, True),
    Variant("1 running, shuffled, no prefix sharing", 1, True, False, "second half"),
    Variant("1 running", 1, False, True, "first half"),
]
PROGRESS_EVERY = 32


class StoredAnswers:
    """The answers of a variant; with a path also in a file, from which a later call resumes."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.answers: Answers = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                index, token_ids, logprobs, sampling_logprobs = json.loads(line)
                self.answers[index] = (tuple(token_ids), tuple(logprobs), tuple(sampling_logprobs))

    def add(self, index: int, answer: Answer) -> None:
        self.answers[index] = answer
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps([index, *answer]) + "\n")


def requests_of(count: int, num_tokens: int) -> list[Request]:
    """`count` greedy and `count` sampled requests; half of them begin with the same 130 ids."""
    rng = random.Random(1)
    opening = tuple(rng.choices(range(10, 150_000), k=130))
    requests = []
    for index in range(2 * count):
        own = tuple(rng.choices(range(10, 150_000), k=rng.randint(8, 100)))
        params: dict[str, Any] = {"max_new_tokens": num_tokens, "ignore_eos": True, "seed": index}
        if index % 2:
            params |= {"strategy": Strategy.SAMPLE}
        requests.append(Request(index, opening + own if index % 4 < 2 else own, GenerationParams(**params)))
    return requests


def decode(
    loaded: LoadedModel, variant: Variant, requests: list[Request], stored: StoredAnswers, reference: Answers
) -> float:
    """Decodes the requests without a stored answer; returns their tokens per second."""
    config = EngineConfig(max_num_seqs=variant.max_num_seqs, share_prefixes=variant.share_prefixes, kv_memory=2.0)
    engine = Engine(loaded, config)
    missing = [request for request in requests if request.id not in stored.answers]
    started, num_tokens = time.perf_counter(), 0
    for output in engine.generate(missing):
        (done,) = output.completions
        assert done.trace is not None
        stored.add(output.request_id, (done.token_ids, tuple(done.trace.logprobs), tuple(done.trace.sampling_logprobs)))
        num_tokens += len(done.token_ids)
        if len(stored.answers) % PROGRESS_EVERY == 0:
            differences = count_differences(stored.answers, reference or stored.answers)
            progress = f"{len(stored.answers)} of {len(requests)}"
            print(f"  {variant.name}: {progress}, differing: {differences}", file=sys.stderr, flush=True)
    return num_tokens / (time.perf_counter() - started)


@dataclass(frozen=True)
class Differences:
    """The number of sequences and of stored logprobs that are not the reference's."""

    sequences: int
    logprobs: int

    def __str__(self) -> str:
        return f"{self.sequences} sequences, {self.logprobs} logprobs"


def count_differences(answers: Answers, reference: Answers) -> Differences:
    sequences = sum(answer[0] != reference[index][0] for index, answer in answers.items())
    logprobs = sum(
        mine != theirs
        for index, answer in answers.items()
        for column in (1, 2)
        for mine, theirs in zip(answer[column], reference[index][column], strict=True)
    )
    return Differences(sequences, logprobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--sequences", type=int, default=256, help="greedy ones, and as many sampled ones")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--alone", type=int, default=512, help="most sequences that are decoded alone")
    parser.add_argument("--max-num-seqs", type=int, nargs="+", choices=[1, 8, 64], default=[1, 8, 64])
    parser.add_argument("--folder", type=Path, help="where answers are stored for the next call")
    given = parser.parse_args()
    if given.folder is not None:
        given.folder.mkdir(parents=True, exist_ok=True)
    loaded = engine_for(getattr(torch, given.dtype), max_num_seqs=1).loaded
    requests = requests_of(given.sequences, given.tokens)
    reference: Answers = {}
    rows = []
    for variant in (REFERENCE, *(variant for variant in VARIANTS if variant.max_num_seqs in given.max_num_seqs)):
        chosen = variant.requests(requests[: given.alone] if variant.max_num_seqs == 1 else requests)
        name = f"{given.dtype}-{given.sequences}-{given.tokens}-{variant.name.replace(' ', '-').replace(',', '')}.jsonl"
        stored = StoredAnswers(None if given.folder is None else given.folder / name)
        rate = decode(loaded, variant, chosen, stored, reference)
        reference = reference or stored.answers
        found = count_differences(stored.answers, reference)
        rows.append({"variant": variant.name, "sequences": len(chosen), "tokens_per_second": round(rate, 1),
                     "differing_sequences": found.sequences, "differing_logprobs": found.logprobs})  # fmt: skip
        print(f"{variant.name:38} {len(chosen):4} sequences  {rate:8.1f} tokens/s  differing: {found}", flush=True)
    print(json.dumps({"dtype": given.dtype, "tokens": given.tokens, "variants": rows}))


if __name__ == "__main__":
    main()
