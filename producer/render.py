"""Rows as text: terminal tables, JSON, JSONL, CSV and Markdown. Knows nothing of runs and databases.

A model's text never reaches a terminal unescaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import chain
from typing import Any, TextIO

from rich.markup import escape
from rich.table import Table

MAX_CELL = 80

#: A cell that no reader can take for a quote, a delimiter, a comment or a formula.
PLAIN_CELL = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.:/-]*|-[0-9.e-]+")


def visible(text: str) -> str:
    """The text with control characters escaped: they cannot move the cursor or colour the screen."""
    return "".join(
        character if character.isprintable() or character == "\n" else character.encode("unicode_escape").decode()
        for character in text
    )


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_json_value)


def write_jsonl(rows: Iterable[dict[str, Any]], file: TextIO) -> None:
    for row in rows:
        file.write(to_json(row) + "\n")


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]], file: TextIO) -> None:
    """CSV by RFC 4180 with lines ending in a newline. Null is an empty cell, an empty string a quoted one.

    Not `csv.writer`: it leaves a lone carriage return unquoted in some versions of Python.
    """
    for row in chain([columns], rows):
        file.write(",".join(map(_csv_cell, row)) + "\n")


def write_markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]], file: TextIO) -> None:
    """A table in GitHub's Markdown."""
    file.write(f"| {' | '.join(map(_markdown_cell, columns))} |\n|{' --- |' * len(columns)}\n")
    for row in rows:
        file.write(f"| {' | '.join(map(_markdown_cell, row))} |\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], whole: Collection[str] = ()) -> Table:
    """A table for the terminal; the columns named in `whole` are never cut."""
    made = Table(header_style="bold", box=None, pad_edge=False)
    for column in columns:
        made.add_column(escape(column), no_wrap=column in whole)
    for row in rows:
        made.add_row(*(_cell(value) for value in row))
    return made


def _cell(value: Any) -> str:
    if value is None:
        return "[dim]null[/dim]"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = visible(
        value if isinstance(value, str) else to_json(value) if isinstance(value, dict | list) else str(value)
    )
    text = text.replace("\n", "\\n")
    return escape(text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…")


def _markdown_cell(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else to_json(_csv_value(value)).strip('"')
    return visible(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")


def _csv_cell(value: Any) -> str:
    value = _csv_value(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "" if value is None else value if isinstance(value, str) else repr(value)
    is_bare = value is None or PLAIN_CELL.fullmatch(text)
    return text if is_bare else '"' + text.replace('"', '""') + '"'


def _csv_value(value: Any) -> Any:
    if isinstance(value, dict | list):
        return to_json(value)
    return value.isoformat() if isinstance(value, datetime) else value


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"no JSON for {type(value).__name__}")
