"""Rows as text: terminal tables, JSON, JSONL, CSV and Markdown. Knows nothing of runs and databases.

A model's text never reaches a terminal unescaped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import chain
from typing import Any, TextIO

from rich.table import Table
from rich.text import Text

from producer.errors import UsageError
from producer.terminal_text import visible, without_formula

__all__ = ["check_csv_safe", "table", "to_json", "visible", "write_csv", "write_json", "write_jsonl", "write_markdown"]

MAX_CELL = 80

#: A cell that no reader can take for a quote, a delimiter, a comment or a formula.
PLAIN_CELL = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.:/-]*|-[0-9.e-]+")


def to_json(value: Any) -> str:
    """The value as JSON, with null for a number that JSON lacks."""
    try:
        return json.dumps(value, ensure_ascii=False, default=_json_value, allow_nan=False)
    except ValueError:  # seldom, so that most values are walked through once
        return json.dumps(_finite(value), ensure_ascii=False, default=_json_value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def write_jsonl(rows: Iterable[dict[str, Any]], file: TextIO) -> None:
    for row in rows:
        file.write(to_json(row) + "\n")


def write_json(rows: Iterable[dict[str, Any]], file: TextIO) -> None:
    """A JSON array with an object a line, written as the rows come."""
    separator = "["
    for row in rows:
        file.write(separator + to_json(row))
        separator = ",\n"
    file.write("]\n" if separator != "[" else "[]\n")


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]], file: TextIO, *, is_safe: bool = False) -> None:
    """CSV by RFC 4180 with lines ending in a newline. Null is an empty cell, an empty string a quoted one.

    With `is_safe` a spreadsheet takes no text for a formula. Not `csv.writer`: it leaves a lone carriage return
    unquoted in some versions of Python.
    """
    for row in chain([columns], rows):
        cells = (without_formula(_csv_value(value)) if is_safe else value for value in row)
        file.write(",".join(map(_csv_cell, cells)) + "\n")


def check_csv_safe(format: str, *, is_csv_safe: bool) -> None:
    """Raises `UsageError` for --csv-safe beside another format."""
    if is_csv_safe and format != "csv":
        raise UsageError(f"--csv-safe is for CSV, and the format is {format}; leave it out, or give --format csv")


def write_markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]], file: TextIO) -> None:
    """A table in GitHub's Markdown."""
    file.write(f"| {' | '.join(map(_markdown_cell, columns))} |\n|{' --- |' * len(columns)}\n")
    for row in rows:
        file.write(f"| {' | '.join(map(_markdown_cell, row))} |\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], whole: Collection[str] = ()) -> Table:
    """A table for the terminal; where it is too wide, columns that are not named in `whole` are folded."""
    made = Table(header_style="bold", box=None, pad_edge=False)
    for column in columns:
        made.add_column(Text(visible(column)), no_wrap=column in whole, overflow="fold")
    for row in rows:
        made.add_row(*(_cell(value) for value in row))
    return made


def _cell(value: Any) -> Text:
    if value is None:
        return Text("null", style="dim")
    if isinstance(value, float):
        return Text(f"{value:.6g}")
    text = visible(
        value if isinstance(value, str) else to_json(value) if isinstance(value, dict | list) else str(value)
    )
    text = text.replace("\n", "\\n")
    return Text(text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…")


def _markdown_cell(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else to_json(_csv_value(value)).strip('"')
    return visible(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")


def _csv_cell(value: Any) -> str:
    value = _csv_value(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "" if value is None else value if isinstance(value, str) else _csv_text(value)
    is_bare = value is None or PLAIN_CELL.fullmatch(text)
    return text if is_bare else '"' + text.replace('"', '""') + '"'


def _csv_text(value: Any) -> str:
    return repr(value) if isinstance(value, int | float) else value.hex() if isinstance(value, bytes) else str(value)


def _csv_value(value: Any) -> Any:
    if isinstance(value, dict | list):
        return to_json(value)
    return value.isoformat() if isinstance(value, datetime) else value


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value) if math.isfinite(value) else None
    return value.hex() if isinstance(value, bytes) else str(value)  # of PostgreSQL's other types
