"""Does a sequence's answer depend on its batch? Decodes the same requests in many ways and compares bits.

    python -m benchmarks.reproducibility --dtype bfloat16 --sequences 256 --tokens 128 --slots 1 8 64

Half greedy, half sampled, with prompts that partly begin alike. The reference has 64 slots; the others have
64, 8 and 1 slots, another order, and prefix sharing off. With one slot every sequence is decoded once, the first
half of them with prefix sharing, the others shuffled and without: that takes as long as the weights are read 65,536
times. `--alone` bounds how many these are, and `--slots` names the ways to be tried in this call.
Prints differing sequences and differing stored logprobs (both should be 0) and each way's speed; while a way runs,
how far it is and what differs so far. With `--folder` an interrupted call goes on where it was.
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
class Way:
    """One way to decode the same requests."""

    name: str
    slots: int
    is_shuffled: bool
    share_prefixes: bool
    part: Literal["all", "first half", "second half"] = "all"

    def requests(self, requests: list[Request]) -> list[Request]:
        """Its part of the requests, in its order."""
        half = len(requests) // 2
        chosen = {"all": requests, "first half": requests[:half], "second half": requests[half:]}[self.part]
        return random.Random(2).sample(chosen, len(chosen)) if self.is_shuffled else chosen


REFERENCE = Way("64 slots", 64, False, True)
WAYS = [
    Way("64 slots, shuffled", 64, True, True),
    Way("64 slots, no prefix sharing", 64, False, False),
    Way("8 slots, shuffled, no prefix sharing", 8, True, False),
    Way("8 slots", 8, False, True),
    Way("1 slot, shuffled, no prefix sharing", 1, True, False, "second half"),
    Way("1 slot", 1, False, True, "first half"),
]
PROGRESS_EVERY = 32


class Kept:
    """Answers of a way, in a file from an earlier call or nowhere."""

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


def decode(loaded: LoadedModel, way: Way, requests: list[Request], kept: Kept, reference: Answers) -> float:
    """Decodes what is not kept yet; returns the tokens per second of that."""
    config = EngineConfig(max_num_seqs=way.slots, share_prefixes=way.share_prefixes, kv_memory=2.0)
    fresh = Engine(loaded, config)
    missing = [request for request in requests if request.id not in kept.answers]
    started, tokens = time.perf_counter(), 0
    for output in fresh.generate(missing):
        (done,) = output.completions
        assert done.trace is not None
        kept.add(output.request_id, (done.token_ids, tuple(done.trace.logprobs), tuple(done.trace.sampling_logprobs)))
        tokens += len(done.token_ids)
        if len(kept.answers) % PROGRESS_EVERY == 0:
            sequences, numbers = compare(kept.answers, reference or kept.answers)
            print(f"  {way.name}: {len(kept.answers)} of {len(requests)}, differing: {sequences} sequences, "
                  f"{numbers} logprobs", file=sys.stderr, flush=True)  # fmt: skip
    return tokens / (time.perf_counter() - started)


def compare(answers: Answers, reference: Answers) -> tuple[int, int]:
    """Differing sequences, and differing stored numbers."""
    sequences = sum(answer[0] != reference[index][0] for index, answer in answers.items())
    numbers = sum(
        mine != theirs
        for index, answer in answers.items()
        for column in (1, 2)
        for mine, theirs in zip(answer[column], reference[index][column], strict=True)
    )
    return sequences, numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--sequences", type=int, default=256, help="greedy ones, and as many sampled ones")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--alone", type=int, default=512, help="most sequences that are decoded with one slot")
    parser.add_argument("--slots", type=int, nargs="+", choices=[1, 8, 64], default=[1, 8, 64])
    parser.add_argument("--folder", type=Path, help="where answers are kept for the next call")
    given = parser.parse_args()
    if given.folder is not None:
        given.folder.mkdir(parents=True, exist_ok=True)
    loaded = engine_for(getattr(torch, given.dtype), max_num_seqs=1).loaded
    requests = requests_of(given.sequences, given.tokens)
    reference: Answers = {}
    rows = []
    for way in (REFERENCE, *(way for way in WAYS if way.slots in given.slots)):
        chosen = way.requests(requests[: given.alone] if way.slots == 1 else requests)
        name = f"{given.dtype}-{given.sequences}-{given.tokens}-{way.name.replace(' ', '-').replace(',', '')}.jsonl"
        kept = Kept(None if given.folder is None else given.folder / name)
        rate = decode(loaded, way, chosen, kept, reference)
        reference = reference or kept.answers
        sequences, numbers = compare(kept.answers, reference)
        rows.append({"way": way.name, "sequences": len(chosen), "tokens_per_second": round(rate, 1),
                     "differing_sequences": sequences, "differing_logprobs": numbers})  # fmt: skip
        print(f"{way.name:38} {len(chosen):4} sequences  {rate:8.1f} tokens/s  "
              f"differing: {sequences} sequences, {numbers} logprobs", flush=True)  # fmt: skip
    print(json.dumps({"dtype": given.dtype, "tokens": given.tokens, "ways": rows}))


if __name__ == "__main__":
    main()
