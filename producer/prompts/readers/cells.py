"""Cells of tables as values: numbers, booleans and nulls as pandas, datasets, Spark, SQL and Excel write them."""

from __future__ import annotations

import json
import re
from typing import Any

from producer.errors import LineProblem
from producer.prompts.readers.record import whole_number

#: Cells that say that there is none, in any case; what R, pandas, Spark, MySQL, Excel and Python write.
NULLS = frozenset({"", "null", "none", "nan", "-nan", "na", "n/a", "<na>", "#n/a", "nat", "\\n"})

BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
BOOLEAN_FIELDS = frozenset({"ignore_eos"})

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
FRACTIONS = frozenset({
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "length_penalty",
})  # fmt: skip
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
WHOLE_WITH_COMMA = re.compile(r"[+-]?\d+,0")  # 7,0; in a whole number three zeros may part thousands

MAX_DIGITS = 400

#: Texts, also where they look like a number.
TEXT_FIELDS = frozenset({"stop", "strategy", "trace"})

ABSENT = object()


def cell_value(name: str, cell: str, *, has_decimal_commas: bool = False) -> Any:
    """A parameter's value; `ABSENT` for a cell that says null. Raises `LineProblem`."""
    text = cell.strip()
    if text.lower() in NULLS and (name, text) != ("trace", "none"):
        return ABSENT
    if name in BOOLEAN_FIELDS:
        return BOOLEANS.get(text.lower(), cell)
    if name in TEXT_FIELDS:
        return _json_list(name, cell)
    if has_decimal_commas and (DECIMAL_COMMA if name in FRACTIONS else WHOLE_WITH_COMMA).fullmatch(text):
        return whole_number(name, float(text.replace(",", ".")))
    if NUMBER.fullmatch(text) and len(text) < MAX_DIGITS:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else whole_number(name, float(text))
    return _json(name, cell)


def _json_list(name: str, cell: str) -> Any:
    """The strings of a JSON list or of one in quotes; any other text as it stands."""
    value = _json(name, cell)
    return value if isinstance(value, list | str) else cell


def _json(name: str, cell: str) -> Any:
    try:
        return json.loads(cell)
    except RecursionError as error:
        raise LineProblem(name, "is nested too deeply") from error
    except ValueError:
        return cell
