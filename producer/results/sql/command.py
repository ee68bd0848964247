"""`producer sql`: one statement, those of stdin, or a console, on a read-only connection."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Engine

from models.settings import Settings
from producer.console import say, stdout
from producer.errors import UsageError
from producer.render import table, to_json, write_csv, write_markdown
from producer.results.database import readable_database
from producer.results.queries import run_sql
from producer.results.sql_examples import EXAMPLES

FORMATS = ("table", "json", "csv", "markdown")

HISTORY = Path("~/.nocturne_sql_history")


def print_sql(settings: Settings, statement: str | None, format: str) -> None:
    """Prints the rows of the statement, of those on stdin, or opens a console. Raises `UsageError`."""
    if format not in FORMATS:
        raise UsageError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}")
    database = readable_database(settings, may_be_older=True)
    if statement is not None:
        _print_rows(database, statement, format)
    elif sys.stdin.isatty():
        _console(database, format)
    else:
        for each in _statements(sys.stdin):
            _print_rows(database, each, format)


def print_examples(settings: Settings) -> None:
    """Prints the example queries in the dialect of the database."""
    dialect = "postgresql" if settings.database_url.startswith("postgresql") else "sqlite"
    for example in EXAMPLES:
        stdout.print(f"-- {example.question}\n{example.statement(dialect)};\n", markup=False)


def _print_rows(database: Engine, statement: str, format: str) -> None:
    columns, rows = run_sql(database, statement)
    if format == "csv":
        write_csv(columns, rows, sys.stdout)
    elif format == "json":
        sys.stdout.write(to_json([dict(zip(columns, row, strict=True)) for row in rows]) + "\n")
    elif format == "markdown":
        write_markdown(columns, rows, sys.stdout)
    else:
        stdout.print(table(columns, rows))


def _console(database: Engine, format: str) -> None:
    """Runs typed statements until the input ends; an error ends its statement only."""
    import readline

    history = HISTORY.expanduser()
    with suppress(OSError):
        readline.read_history_file(history)
    say("a SELECT that ends with ; (views: job_results, job_tokens, token_alternatives, run_summary); Ctrl-D leaves")
    try:
        for statement in _statements(_typed_lines()):
            try:
                _print_rows(database, statement, format)
            except UsageError as error:
                say(f"error: {error}")
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
