"""Cells of tables as values: numbers, booleans and nulls as pandas, datasets, Spark, SQL and Excel write them."""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any

from producer.errors import LineProblem
from producer.prompts.readers.literals import has_neighboring_strings, literal
from producer.prompts.readers.record import EXACT_FLOATS, whole_number

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
THOUSANDS_WITH_POINT = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+")  # beside decimal commas: a thousand, or one

MAX_DIGITS = 400
MAX_WHOLE_DIGITS = 400  # of 1e300

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
    if has_decimal_commas and name not in FRACTIONS and THOUSANDS_WITH_POINT.fullmatch(text):
        return cell
    if NUMBER.fullmatch(text) and len(text) < MAX_DIGITS:
        return _number(name, text)
    return _json(name, cell)


def _number(name: str, text: str) -> Any:
    """A number; a whole one to its last digit, however it is written."""
    try:
        exact = Decimal(text)
    except InvalidOperation:  # an exponent of twenty digits
        return float(text)
    is_whole = name not in FRACTIONS and exact.adjusted() < MAX_WHOLE_DIGITS and exact == exact.to_integral_value()
    if "e" in text.lower() and abs(exact) >= EXACT_FLOATS:
        is_whole = False  # a spreadsheet has rounded it: 1.23457E+17
    return int(exact) if is_whole else whole_number(name, float(text))


def _json_list(name: str, cell: str) -> Any:
    """The strings of a list or of one in quotes, as JSON or Python writes them; any other text as it stands."""
    value = _json(name, cell)
    return value if isinstance(value, list | str) else cell


def _json(name: str, cell: str) -> Any:
    """The value that a cell spells as JSON, or a list or an object as pandas writes it; any other text as it stands."""
    is_container = cell.strip()[:1] in ("[", "(", "{")
    try:
        value = literal(cell) if is_container else json.loads(cell)
    except RecursionError as error:
        raise LineProblem(name, "is nested too deeply") from error
    except ValueError:
        return cell
    if is_container and not isinstance(value, list | dict):
        return cell
    if is_container and has_neighboring_strings(cell.strip()):
        raise LineProblem(name, f"is a list without commas, as numpy prints it ({cell.strip()[:60]}); write it as JSON")
    return value
