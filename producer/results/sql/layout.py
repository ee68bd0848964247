"""Rows as lines of text: a table, or vertical, a line for each column. Whole, unless a width is given for a table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

from rich.cells import cell_len, chop_cells, set_cell_size

from producer.render import to_json, visible

GAP = "  "
RULE_CELLS = 80

_WORD = re.compile(r"\s*\S+\s?|\s+")

Rows = Iterable[Sequence[Any]]


def cell_text(value: Any, *, is_short: bool = False) -> str:
    """A value as text that moves no cursor; `is_short` rounds floats to six digits."""
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:.6g}" if is_short else repr(value)
    return visible(
        value if isinstance(value, str) else to_json(value) if isinstance(value, dict | list) else str(value)
    )


def column_widths(columns: Sequence[str], rows: Rows, limit: int | None, *, is_short: bool) -> list[int] | None:
    """The widest cell of each column; None as soon as a line is longer than the limit."""
    widths = [cell_len(visible(name)) for name in columns]
    for row in rows:
        for index, value in enumerate(row):
            widths[index] = max(widths[index], cell_len(_one_line(value, is_short)))
        if limit is not None and _line_width(widths) > limit:
            return None
    return None if limit is not None and _line_width(widths) > limit else widths


def table_lines(columns: Sequence[str], rows: Rows, widths: Sequence[int], *, is_short: bool) -> Iterator[str]:
    """A head and a line for each row; numbers stand to the right, longer cells end with an ellipsis."""
    yield _line([visible(name) for name in columns], widths, [False] * len(widths))
    for row in rows:
        cells = [_one_line(value, is_short) for value in row]
        are_numbers = [isinstance(value, int | float | Decimal) and not isinstance(value, bool) for value in row]
        yield _line(cells, widths, are_numbers)


def fitting(widths: Sequence[int], limit: int) -> list[int]:
    """The widths with the widest columns cut until a line has no more than `limit` cells, or each column one."""
    fitted = list(widths)
    while _line_width(fitted) > limit and max(fitted, default=1) > 1:
        widest = max(fitted)
        second = max((width for width in fitted if width < widest), default=1)
        excess = -(-(_line_width(fitted) - limit) // fitted.count(widest))
        fitted = [max(second, width - excess, 1) if width == widest else width for width in fitted]
    return fitted


def vertical_lines(columns: Sequence[str], rows: Rows, num_rows: int, width: int | None) -> Iterator[str]:
    """A rule with the row's number, then a line for each column; longer values go on below their beginning."""
    names = [visible(name) for name in columns]
    indent = max(map(cell_len, names), default=0)
    for number, row in enumerate(rows, 1):
        title = f"─[ {number:,} of {num_rows:,} ]"
        yield title + "─" * (min(width or RULE_CELLS, RULE_CELLS) - cell_len(title))
        for name, value in zip(names, row, strict=True):
            first, *others = _wrapped(cell_text(value), None if width is None else max(width - indent - len(GAP), 8))
            yield f"{set_cell_size(name, indent)}{GAP}{first}".rstrip()
            yield from (f"{' ' * indent}{GAP}{line}".rstrip() for line in others)


def _wrapped(text: str, width: int | None) -> list[str]:
    lines = text.split("\n")
    return lines if width is None else [part for line in lines for part in _folded(line, width)]


def _folded(line: str, width: int) -> Iterator[str]:
    """The parts of a line, broken between words; a word that is longer is broken too."""
    part = ""
    for word in _WORD.findall(line):
        if part and cell_len(part + word.rstrip()) > width:
            yield part
            part = ""
        *whole, part = chop_cells(part + word, width) if cell_len((part + word).rstrip()) > width else [part + word]
        yield from whole
    yield part


def _one_line(value: Any, is_short: bool) -> str:
    return cell_text(value, is_short=is_short).replace("\n", "\\n")


def _line_width(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _line(cells: Sequence[str], widths: Sequence[int], are_right: Sequence[bool]) -> str:
    return GAP.join(map(_padded, cells, widths, are_right)).rstrip()


def _padded(cell: str, width: int, is_right: bool) -> str:
    length = cell_len(cell)
    if length > width:
        return set_cell_size(cell, width - 1) + "…"
    return " " * (width - length) + cell if is_right else cell + " " * (width - length)
