"""The path on which the engine decodes a model, and its reason: found by the engine's self check, kept in a file.

Reading one loads no torch. The file's name is a hash of the configuration, the engine's source and its libraries, so
that whatever could change the verdict asks for a new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from models.checkpoint.paths.cache_folder import users_cache_folder

DecodingPath = Literal["packed", "fallback", "refused"]

#: Fields of a configuration that change no computation.
IDLE_FIELDS = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "quantization_config",
     "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "initializer_range"}
)  # fmt: skip

#: The sentence about a model whose rows are rounded by what else is in their batch.
VARIANT = "not batch-invariant: log-probabilities may differ in their last bits from batch to batch"
ENGINE_FOLDER = Path(__file__).parents[3] / "worker" / "engine"
MAX_BYTES = 65536


@dataclass(frozen=True)
class Verdict:
    """`packed` decodes all rows in one batch, `fallback` one sequence at a time as `generate` does."""

    path: DecodingPath
    reason: str
    difference: float | None = None  # of the packed path from the model's own, in standard deviations of the logits
    is_batch_invariant: bool | None = None  # of the packed path on a CPU; None where that was not tried

    @property
    def sentence(self) -> str:
        return f"{self.path}: {self.reason}" + (f"; {VARIANT}" if self.is_batch_invariant is False else "")


UNTESTED = "untested: the first worker that loads it finds out, within 20 s"


def verdict_key(config: Mapping[str, Any], device: str) -> str:
    """The name under which the verdict on a `config.json` is kept; `device` is cpu or cuda."""
    parts = [_plain(config), device, _engine_fingerprint(), *(version(name) for name in ("torch", "transformers"))]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def stored_verdict(key: str) -> Verdict | None:
    """The verdict that was kept, or None; a damaged file is as good as absent."""
    try:
        with (_folder() / f"{key}.json").open("rb") as file:
            found = json.loads(file.read(MAX_BYTES))
        verdict = Verdict(str(found["path"]), str(found["reason"]), found["difference"], found["is_batch_invariant"])  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return verdict if verdict.path in get_args(DecodingPath) else None


def store_verdict(key: str, verdict: Verdict) -> None:
    """Keeps a verdict for later loads; a reader finds it whole or not at all. Raises `OSError`."""
    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=folder)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(verdict), file)
        os.replace(name, folder / f"{key}.json")
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _folder() -> Path:
    return users_cache_folder() / "nocturne" / "verdicts"


def _plain(value: Any) -> Any:
    """A configuration without its idle fields, at any depth."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items() if name not in IDLE_FIELDS}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


@cache
def _engine_fingerprint() -> str:
    """A hash of the engine's source, which decides what it computes."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in ENGINE_FOLDER.rglob("*") if path.suffix in {".py", ".c", ".h"}):
        digest.update(path.read_bytes())
    return digest.hexdigest()
