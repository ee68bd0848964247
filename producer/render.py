"""Rows as text: terminal tables, JSON, JSONL, CSV and Markdown. Knows nothing of runs and databases.

A model's text never reaches a terminal unescaped.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, TextIO

from rich.markup import escape
from rich.table import Table

MAX_CELL = 80


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
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_csv_value(value) for value in row])


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


def _csv_value(value: Any) -> Any:
    return (
        to_json(value)
        if isinstance(value, dict | list)
        else value.isoformat()
        if isinstance(value, datetime)
        else value
    )


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"no JSON for {type(value).__name__}")
