"""The form of a statement's rows on stdout: whole in a pipe; on a terminal a table, vertical if too wide."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from producer.console import say
from producer.errors import UsageError
from producer.render import check_csv_safe, write_csv, write_json, write_markdown
from producer.results.sql.layout import column_widths, fitting, table_lines, vertical_lines
from producer.results.sql.pager import paged
from producer.results.sql.spool import Spool
from producer.results.sql.statement import DEFAULT_TIMEOUT
from producer.terminal_text import TerminalFile

FORMATS = ("table", "vertical", "json", "csv", "markdown")

BOLD, NOT_BOLD = "\x1b[1m", "\x1b[22m"


@dataclass(frozen=True)
class SqlOutput:
    """The form of the rows, and the time that a statement may take."""

    format: str = "table"
    timeout: float = DEFAULT_TIMEOUT
    is_csv_safe: bool = False
    expanded: str = "auto"  # whether tables are vertical: on, off, or auto where they are too wide
    has_pager: bool = True

    def check(self) -> None:
        """Raises `UsageError`."""
        if self.format not in FORMATS:
            raise UsageError(f"--format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        check_csv_safe(self.format, is_csv_safe=self.is_csv_safe)


def print_rows(columns: Sequence[str], rows: Spool, output: SqlOutput, seconds: float | None = None) -> None:
    """Prints the rows; on a terminal their number follows a table of a statement, which took `seconds`."""
    columns = _distinct(columns)
    is_terminal = sys.stdout.isatty()
    with paged(sys.stdout, is_wanted=output.has_pager) as file:
        data: Any = TerminalFile(file) if is_terminal else file
        if output.format == "csv":
            write_csv(columns, rows, data, is_safe=output.is_csv_safe)
        elif output.format == "json":
            write_json((dict(zip(columns, row, strict=True)) for row in rows), data)
        elif output.format == "markdown":
            write_markdown(columns, rows, data)
        else:
            _write_lines(columns, rows, output, file)
    if is_terminal and seconds is not None and output.format in ("table", "vertical"):
        say(f"{rows.num_rows:,} row{'' if rows.num_rows == 1 else 's'} in {seconds:.2f} s")


def print_text(text: str, output: SqlOutput) -> None:
    """Prints text of our own, such as the schema, through the pager where it is long."""
    with paged(sys.stdout, is_wanted=output.has_pager) as file:
        file.write(text if text.endswith("\n") else f"{text}\n")


def _write_lines(columns: Sequence[str], rows: Spool, output: SqlOutput, file: Any) -> None:
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else None
    is_vertical = output.format == "vertical" or output.expanded == "on"
    limit = width if output.expanded == "auto" else None
    widths = None if is_vertical else column_widths(columns, rows, limit, is_short=is_terminal)
    if widths is None:
        for line in vertical_lines(columns, rows, rows.num_rows, width):
            file.write(f"{line}\n")
        return
    if width is not None:
        widths = fitting(widths, width)
    lines = table_lines(columns, rows, widths, is_short=is_terminal)
    head = next(lines)
    file.write(f"{BOLD}{head}{NOT_BOLD}\n" if is_terminal else f"{head}\n")
    for line in lines:
        file.write(f"{line}\n")


def _distinct(columns: Sequence[str]) -> list[str]:
    """The columns with a number behind each repeated name, since JSON would keep its last value alone."""
    times: Counter[str] = Counter()
    taken, names = set(columns), []
    for name in columns:
        times[name] += 1
        distinct = name
        while times[name] > 1 and (distinct := f"{name}_{times[name]}") in taken:
            times[name] += 1
        taken.add(distinct)
        names.append(distinct)
    return names
