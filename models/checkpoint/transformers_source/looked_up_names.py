"""Names in a configuration that a model's class looks up in tables of Transformers: activations, rotary positions.

The tables are read from the source of the installed Transformers, since importing it would load torch. Where the source
of a model's class cannot be found, or has the name itself, the engine finds out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from models.checkpoint.small_files import CheckpointProblem

#: Word in a class's source that tells of the lookup -> the file and the name of its table.
TABLES = {
    "ACT2FN": ("activations.py", "ACT2CLS"),
    "ROPE_INIT_FUNCTIONS": ("modeling_rope_utils.py", "ROPE_INIT_FUNCTIONS"),
}
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
ROPES = ("rope_parameters", "rope_scaling")


def check_names(path: Path, text_config: Mapping[str, Any]) -> None:
    """Raises `CheckpointProblem` for a name that the model's class would look for in vain."""
    for table, field, name in _looked_up(text_config):
        known = _names(table)
        if name in known or not known:
            continue
        source = source_of(str(text_config.get("model_type")), "configuration", "modeling")
        if table in source and f'"{name}"' not in source:
            raise CheckpointProblem(
                f"{path}: Transformers {version('transformers')} knows no {field} {name[:100]!r}; it knows "
                f"{', '.join(sorted(known))}. Correct the file, or upgrade transformers on producer and workers"
            )


def rope_parts(text_config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parameters of rotary positions, and those of single kinds of layers."""
    rope = next((text_config[name] for name in ROPES if text_config.get(name)), None)
    if not isinstance(rope, dict):
        return []
    return [rope, *(part for part in rope.values() if isinstance(part, dict))]


def _looked_up(text_config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Table, field and name of each lookup."""
    for field in ACTIVATIONS:
        if isinstance(name := text_config.get(field), str):
            yield "ACT2FN", field, name
    for part in rope_parts(text_config):
        name = part.get("rope_type", part.get("type"))
        if isinstance(name, str) and name != "default":
            yield "ROPE_INIT_FUNCTIONS", "rope_type", name


@cache
def _names(table: str) -> frozenset[str]:
    """The keys of a table; empty where it cannot be read."""
    file, variable = TABLES[table]
    found = re.search(rf"^{variable}\b[^\n]*= {{\n(.*?)^}}", _read(file), re.MULTILINE | re.DOTALL)
    return frozenset(re.findall(r'^    "([^"]+)":', found[1], re.MULTILINE)) if found else frozenset()


@cache
def source_of(model_type: str, *kinds: str) -> str:
    """The source of a model type's classes, which may share those of a model that sees images too.

    `kinds` are those of its files: configuration or modeling.
    """
    whole = model_type.replace("-", "_")
    for folder in map(whole.removesuffix, ("", "_text", "_text_model")):
        sources = [_read(f"models/{folder}/{kind}_{folder}.py") for kind in kinds if folder.isidentifier()]
        if any(sources):
            return "".join(sources)
    return ""


def _read(file: str) -> str:
    spec = find_spec("transformers")
    path = Path(spec.origin).parent / file if spec is not None and spec.origin is not None else None
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""
