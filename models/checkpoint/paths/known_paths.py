"""The path of every model type that the matrix has tried: data that is shipped, made by `benchmarks.model_matrix`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from models.checkpoint.config import packing_problem, text_part
from models.checkpoint.paths.verdict import UNTESTED, stored_verdict, verdict_key

TABLE = Path(__file__).with_name("model_paths.json")


@dataclass(frozen=True)
class KnownPath:
    """A tiny model of a type, against `generate`; counts are (equal, compared).

    `fp32` and `bf16` are numbers that differ from batch to batch, and how many were compared.
    """

    path: str
    reason: str
    greedy: tuple[int, int]
    beams: tuple[int, int]
    samples: tuple[int, int]
    fp32: tuple[int, int]
    bf16: tuple[int, int]

    @property
    def is_batch_invariant(self) -> bool | None:
        """Always true of the fallback, which decodes each sequence by itself; None where it was not tried."""
        if self.path == "fallback":
            return True
        return not self.variant_dtypes if self.fp32[1] else None

    @property
    def variant_dtypes(self) -> list[str]:
        return [name for name, (differing, _) in (("fp32", self.fp32), ("bf16", self.bf16)) if differing]


#: The counts of a row.
COUNTS = ("greedy", "beams", "samples", "fp32", "bf16")


@cache
def known_paths() -> dict[str, KnownPath]:
    """The table by model type."""
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["types"]
    return {
        model_type: KnownPath(row["path"], row["reason"], *(tuple(row.get(name, (0, 0))) for name in COUNTS))
        for model_type, row in rows.items()
    }


def tested_with() -> str:
    """The version of Transformers that the table was made with."""
    version: str = json.loads(TABLE.read_text(encoding="utf-8"))["transformers"]
    return version


def path_of(config: Mapping[str, Any]) -> str:
    """The sentence about the path of a `config.json`: a kept verdict, the table's, or that there is none yet."""
    text_config = text_part(config)
    if problem := packing_problem(text_config):
        return f"fallback: {problem}"
    for device in ("cuda", "cpu"):
        if (verdict := stored_verdict(verdict_key(config, device))) is not None:
            return f"{verdict.sentence} (checked here, {device})"
    known = known_paths().get(str(text_config.get("model_type") or config.get("model_type")))
    if known is None or known.path == "not built":
        return UNTESTED
    return f"{known.path}: {known.reason} (a tiny model, {tested_with()})"
