"""What every peer's process does: says that it is ready, then decodes all requests once for each line it reads.

Runs in the peers' environment, which has nothing of ours: standard library only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def requests_of(path: str) -> list[dict[str, Any]]:
    """`prompt_ids` and `max_new_tokens` of each."""
    return list(json.loads(Path(path).read_text()))


def serve(decode: Callable[[], int]) -> None:
    """`decode` returns how many tokens it made."""
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        num_tokens = decode()
        print(json.dumps({"seconds": time.perf_counter() - started, "tokens": num_tokens}), flush=True)
