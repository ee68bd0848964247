"""`producer sql`: statements of the command line or of stdin, an example, or a console, on a read-only connection."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from sqlalchemy import Engine

from models.entry_point import EXIT_INTERRUPTED
from models.settings import Settings
from producer.console import say
from producer.errors import UsageError
from producer.results.database import check_reading_role, reading, reading_url
from producer.results.sql.output import SqlOutput, print_text
from producer.results.sql.shell import Leave, Shell, examples_text, find_example
from producer.results.sql.statements import inputs


def print_sql(
    settings: Settings, statement: str | None, output: SqlOutput, *, as_superuser: bool, is_example: bool = False
) -> int:
    """Prints the rows of the statement, of those on stdin, or opens a console; returns the exit code.

    With `is_example` the statement is the name of one. Raises `UsageError`.
    """
    output.check()
    example = find_example(statement) if is_example and statement is not None else None
    if is_example and example is None:
        dialect = "postgresql" if reading_url(settings).startswith("postgresql") else "sqlite"
        print_text(examples_text(dialect), output)
        return 0
    with reading(settings, may_be_older=True) as database:
        check_reading_role(database, as_superuser=as_superuser)
        try:
            _answer(database, example.statement(database.dialect.name) if example is not None else statement, output)
        except KeyboardInterrupt:
            say("interrupted: the statement was stopped")
            return EXIT_INTERRUPTED
        except Leave:
            pass
    return 0


def _answer(database: Engine, statement: str | None, output: SqlOutput) -> None:
    shell = Shell(database, output)
    if statement is not None:
        if not statement.strip():
            raise UsageError("the statement is empty; give a SELECT, or nothing for a console")
        shell.run(statement)
    elif sys.stdin.isatty():
        from producer.results.sql.console import run_console  # prompt_toolkit takes long to load

        run_console(database, shell)
    else:
        for typed in inputs(_lines_of_stdin()):
            shell.run(typed)


def _lines_of_stdin() -> Iterator[str]:
    """Raises `UsageError` for bytes that are not text."""
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not {error.encoding}: {error.reason}; give the statements as UTF-8") from error
