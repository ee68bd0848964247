"""`producer run` of long-tailed jobs with traces, Redis and SQL included, beside the bare engine on the same requests.

    python -m benchmarks.whole_system --requests 256

Both decode with a trace of every token; loading the model is left out of both: the system's time goes from its
first claim to its last commit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.against_peers import saved_model
from benchmarks.pipeline import seconds_of_work
from benchmarks.workload import long_tailed
from models.database import open_database
from worker.engine.engine import Engine
from worker.engine.request import Request


def bare(model: Path, requests: list[Request]) -> float:
    engine = Engine.load(str(model), device="cpu", dtype="bfloat16")
    started = time.perf_counter()
    for _ in engine.generate(requests):
        pass
    return time.perf_counter() - started


def system(model: Path, requests: list[Request], folder: Path) -> float:
    path = folder / "prompts.jsonl"
    with path.open("w") as file:
        for request in requests:
            prompt = " ".join(f"t{token_id}" for token_id in request.prompt_ids)
            line = {"prompt": prompt, "max_new_tokens": request.params.max_new_tokens, "ignore_eos": True}
            file.write(json.dumps(line) + "\n")
    command = [sys.executable, "-m", "producer", "run", str(path), "--model", str(model)]
    subprocess.run([*command, "--home", str(folder / "home"), "--quiet"], check=True)
    database = open_database(f"sqlite:///{folder / 'home' / 'nocturne.db'}")
    return seconds_of_work(database)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="where the model is kept; default: a temporary one")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    requests = [
        replace(each, params=each.params.model_copy(update={"trace": "tokens"})) for each in long_tailed(given.requests)
    ]
    num_tokens = sum(request.params.max_new_tokens for request in requests)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        model = saved_model(folder)
        ours = bare(model, requests)
        theirs = system(model, requests, Path(temporary))
    print(f"{len(requests)} requests, {num_tokens} tokens, a trace row each")
    print(f"bare engine  {num_tokens / ours:8.1f} tokens/s")
    print(f"producer run {num_tokens / theirs:8.1f} tokens/s   {ours / theirs:.1%} of the engine")


if __name__ == "__main__":
    main()
