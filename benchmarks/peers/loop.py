"""The loop of every peer's process: it prints `ready`, then decodes all requests once for each line it reads.

Runs in the peers' environment, which lacks our packages: standard library only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def requests_of(path: str) -> list[dict[str, Any]]:
    """The saved requests, each with `prompt_ids` and `max_new_tokens`."""
    return list(json.loads(Path(path).read_text()))


def serve(decode: Callable[[], int]) -> None:
    """Answers each line with a JSON object of seconds and tokens; `decode` returns how many tokens it generated."""
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        num_tokens = decode()
        print(json.dumps({"seconds": time.perf_counter() - started, "tokens": num_tokens}), flush=True)
