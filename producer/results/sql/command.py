"""`producer sql`: one statement, those of stdin, or a console, on a read-only connection."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sqlalchemy import Engine

from models.entry_point import EXIT_INTERRUPTED
from models.settings import Settings
from producer.console import data_out, say, stdout
from producer.errors import UsageError
from producer.render import check_csv_safe, table, write_csv, write_json, write_markdown
from producer.results.database import check_reading_role, reading, reading_url
from producer.results.sql.examples import EXAMPLES
from producer.results.sql.statement import DEFAULT_TIMEOUT, answer

FORMATS = ("table", "json", "csv", "markdown")

#: A table is laid out in memory, by its widest cells.
MAX_TABLE_ROWS = 10_000

HISTORY = Path("~/.nocturne_sql_history")


@dataclass(frozen=True)
class SqlOutput:
    """The form of the rows, and the time that a statement may take."""

    format: str = "table"
    timeout: float = DEFAULT_TIMEOUT
    is_csv_safe: bool = False


def print_sql(settings: Settings, statement: str | None, output: SqlOutput, *, as_superuser: bool) -> int:
    """Prints the rows of the statement, of those on stdin, or opens a console; returns the exit code.

    Raises `UsageError`.
    """
    if output.format not in FORMATS:
        raise UsageError(f"--format must be one of {', '.join(FORMATS)}, got {output.format!r}")
    check_csv_safe(output.format, is_csv_safe=output.is_csv_safe)
    with reading(settings, may_be_older=True) as database:
        check_reading_role(database, as_superuser=as_superuser)
        try:
            _answer(database, statement, output)
        except KeyboardInterrupt:
            say("interrupted: the statement was stopped")
            return EXIT_INTERRUPTED
    return 0


def _answer(database: Engine, statement: str | None, output: SqlOutput) -> None:
    if statement is not None:
        _print_rows(database, statement, output)
    elif sys.stdin.isatty():
        _console(database, output)
    else:
        for each in _statements(sys.stdin):
            _print_rows(database, each, output)


def print_examples(settings: Settings) -> None:
    """Prints the example queries in the dialect of the database."""
    dialect = "postgresql" if reading_url(settings).startswith("postgresql") else "sqlite"
    for example in EXAMPLES:
        stdout.print(f"-- {example.question}\n{example.statement(dialect)};\n")


def _print_rows(database: Engine, statement: str, output: SqlOutput) -> None:
    with answer(database, statement, output.timeout) as found:
        columns = _distinct(found.columns)
        if output.format == "csv":
            write_csv(columns, found.rows, data_out(), is_safe=output.is_csv_safe)
        elif output.format == "json":
            write_json((dict(zip(columns, row, strict=True)) for row in found.rows), data_out())
        elif output.format == "markdown":
            write_markdown(columns, found.rows, data_out())
        else:
            stdout.print(table(columns, islice(found.rows, MAX_TABLE_ROWS)))
            if found.rows.num_rows > MAX_TABLE_ROWS:
                say(f"the first {MAX_TABLE_ROWS:,} of {found.rows.num_rows:,} rows; --format csv has them all")


def _distinct(columns: list[str]) -> list[str]:
    """The columns with a number behind each repeated name, since JSON would keep its last value alone."""
    taken: Counter[str] = Counter()
    names = []
    for name in columns:
        taken[name] += 1
        names.append(name if taken[name] == 1 else f"{name}_{taken[name]}")
    return names


def _console(database: Engine, output: SqlOutput) -> None:
    """Runs typed statements until the input ends; an error ends its statement only."""
    import readline

    history = HISTORY.expanduser()
    with suppress(OSError):
        readline.read_history_file(history)
    say("a SELECT that ends with ; (views: job_results, job_tokens, token_alternatives, run_summary); Ctrl-D leaves")
    try:
        for statement in _statements(_typed_lines()):
            try:
                _print_rows(database, statement, output)
            except UsageError as error:
                say(f"error: {error}")
            except KeyboardInterrupt:
                say("interrupted: the statement was stopped")
    finally:
        with suppress(OSError):
            readline.write_history_file(history)


def _typed_lines() -> Iterator[str]:
    prompt = "nocturne> "
    while True:
        try:
            line = input(prompt)
        except EOFError:
            print(file=sys.stderr)  # noqa: T201 - the shell's prompt begins on a line of its own
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)  # noqa: T201
            continue
        yield line + "\n"
        prompt = "nocturne> " if line.rstrip().endswith(";") else "      ...> "


def _statements(lines: Iterable[str]) -> Iterator[str]:
    """Statements that end with a semicolon at a line's end; the last may lack it."""
    collected = ""
    for line in lines:
        collected += line
        if line.rstrip().endswith(";"):
            if collected.strip("; \n\t"):
                yield collected.strip().rstrip(";")
            collected = ""
    if collected.strip():
        yield collected.strip()
