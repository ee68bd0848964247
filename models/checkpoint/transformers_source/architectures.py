"""The model types that the installed Transformers decodes, read from its source: importing it would load torch."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

CAUSAL_TABLE = ("modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
CONDITIONAL_TABLE = ("modeling_auto.py", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES")
CONFIG_TABLES = (("auto_mappings.py", "CONFIG_MAPPING_NAMES"), ("configuration_auto.py", "CONFIG_MAPPING_NAMES"))


@dataclass(frozen=True)
class Architectures:
    """Names by model type; all are empty where they cannot be read, and then nothing is known."""

    causal: dict[str, str]  # the class of the causal language model
    conditional: dict[str, str]  # the class of the model that sees images too
    configs: dict[str, str]  # of every model


@cache
def known_architectures() -> Architectures:
    """The tables of the installed Transformers."""
    configs: dict[str, str] = {}
    for file, name in CONFIG_TABLES:
        configs |= _table(file, name)
    return Architectures(_table(*CAUSAL_TABLE), _table(*CONDITIONAL_TABLE), configs)


def _table(file: str, name: str) -> dict[str, str]:
    """The pairs of strings in the assignment of a table."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        return {}
    path = Path(spec.origin).parent / "models" / "auto" / file
    if not path.is_file():
        return {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return _string_pairs(node.value)
    return {}


def _string_pairs(table: ast.expr) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for node in ast.walk(table):
        if isinstance(node, ast.Tuple) and len(node.elts) == 2:
            key, value = node.elts
            if isinstance(value, ast.Tuple) and value.elts:  # several classes: the first one is the usual
                value = value.elts[0]
            if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                pairs.setdefault(str(key.value), str(value.value))
        elif isinstance(node, ast.Dict):
            for dict_key, dict_value in zip(node.keys, node.values, strict=True):
                if isinstance(dict_key, ast.Constant) and isinstance(dict_value, ast.Constant):
                    pairs[str(dict_key.value)] = str(dict_value.value)
    return pairs
