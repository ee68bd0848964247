"""Getting data out: `producer results` and `producer sql`. Data goes to stdout or to a file that appears whole."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from models.database import open_database
from models.settings import Settings
from producer.console import stdout
from producer.errors import UsageError
from producer.queries import RESULT_COLUMNS, find_run, results, run_sql
from producer.render import table, to_json, write_csv, write_jsonl

RESULT_FORMATS = ("jsonl", "csv")
SQL_FORMATS = ("table", "json", "csv")


def export_results(settings: Settings, reference: str | None, format: str, output: Path | None) -> None:
    """Writes the run's results. Raises `UsageError`."""
    _check_format(format, RESULT_FORMATS)
    database = open_database(settings.database_url, read_only=True)
    rows = results(database, find_run(database, reference))
    with _destination(output) as file:
        if format == "jsonl":
            write_jsonl(rows, file)
        else:
            write_csv(RESULT_COLUMNS, ([row[name] for name in RESULT_COLUMNS] for row in rows), file)


def print_sql(settings: Settings, statement: str, format: str) -> None:
    """Runs the statement and prints its rows. Raises `UsageError`."""
    _check_format(format, SQL_FORMATS)
    columns, rows = run_sql(open_database(settings.database_url, read_only=True), statement)
    if format == "csv":
        write_csv(columns, rows, sys.stdout)
    elif format == "json":
        sys.stdout.write(to_json([dict(zip(columns, row, strict=True)) for row in rows]) + "\n")
    else:
        stdout.print(table(columns, rows))


def _check_format(format: str, known: tuple[str, ...]) -> None:
    if format not in known:
        raise UsageError(f"--format must be one of {', '.join(known)}, got {format!r}")


@contextmanager
def _destination(output: Path | None) -> Iterator[TextIO]:
    """stdout, or a file beside the target that replaces it only when everything is written."""
    if output is None:
        yield sys.stdout
        return
    try:
        descriptor, temporary = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}-")
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, output)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
