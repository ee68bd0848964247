"""`producer run` of long-tailed jobs with traces, Redis and SQL included, beside the bare engine on the same requests.

    python -m benchmarks.whole_system --requests 256 --rounds 3

Both decode with a trace of every token, alternately; the medians are compared. Neither time includes loading the
model: the system's goes from its first claim to its last commit.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from sqlalchemy import func, select

from benchmarks.against_peers import save_model_for_text
from benchmarks.pipeline import seconds_of_work
from benchmarks.support.timing import timed
from benchmarks.support.workload import long_tailed
from models.database.connection import open_database
from models.params import GenerationParams
from models.schema.result import Result
from worker.engine.engine import Engine
from worker.engine.request import Request


@dataclass(frozen=True)
class Line:
    """A line of the prompt file, which is also one request to the bare engine."""

    prompt: str
    max_new_tokens: int

    @property
    def params(self) -> GenerationParams:
        return GenerationParams(max_new_tokens=self.max_new_tokens, ignore_eos=True, trace="tokens")


def lines_of(count: int) -> list[Line]:
    """The long-tailed requests with prompts of words: about as many prompt tokens and exactly as many new ones."""
    rng = random.Random(0)
    lines = []
    for request in long_tailed(count):
        words = rng.choices(
            ("a", "hedgehog", "named", "Sonic", "sat", "under", "the", "tree"), k=len(request.prompt_ids)
        )
        lines.append(Line(" ".join(words), request.params.max_new_tokens))
    return lines


def decode_bare(base: Engine, lines: list[Line]) -> tuple[float, int]:
    """Decodes the lines with the engine alone; returns the seconds and the number of prompt tokens."""
    engine = Engine(base.loaded, base.config)
    requests = [Request(number, engine.encode(line.prompt), line.params) for number, line in enumerate(lines)]
    seconds = timed(lambda: list(engine.generate(requests)))
    return seconds, sum(len(request.prompt_ids) for request in requests)


def run_system(model: Path, lines: list[Line], folder: Path) -> tuple[float, int]:
    """Decodes the lines with `producer run`; returns the seconds and the number of prompt tokens."""
    path = folder / "prompts.jsonl"
    given = [{"prompt": line.prompt, "max_new_tokens": line.max_new_tokens, "ignore_eos": True} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in given))
    command = [sys.executable, "-m", "producer", "run", str(path), "--model", str(model)]
    subprocess.run([*command, "--home", str(folder / "home"), "--quiet"], check=True)
    database = open_database(f"sqlite:///{folder / 'home' / 'nocturne.db'}")
    with database.connect() as connection:
        num_prompt_tokens = connection.execute(select(func.sum(Result.prompt_tokens))).scalar_one()
    return seconds_of_work(database), num_prompt_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for the model, kept for the next call; default: a temporary one")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    lines = lines_of(given.requests)
    num_tokens = sum(line.max_new_tokens for line in lines)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        model = save_model_for_text(folder)
        base = Engine.load(str(model), device="cpu", dtype="bfloat16")
        taken: dict[str, list[float]] = {"bare": [], "system": []}
        for number in range(given.rounds):
            round_folder = Path(temporary) / f"round-{number}"
            round_folder.mkdir()
            seconds, num_prompt_tokens = decode_bare(base, lines)
            taken["bare"].append(seconds)
            seconds, num_theirs = run_system(model, lines, round_folder)
            taken["system"].append(seconds)
            assert num_theirs == num_prompt_tokens, "the two did not decode the same prompts"
    ours, theirs = median(taken["bare"]), median(taken["system"])
    print(f"{len(lines)} requests, {num_prompt_tokens} + {num_tokens} tokens, a trace row for each of the latter")
    print(f"bare engine  {num_tokens / ours:8.1f} tokens/s")
    print(f"producer run {num_tokens / theirs:8.1f} tokens/s   {ours / theirs:.1%} of the engine")


if __name__ == "__main__":
    main()
