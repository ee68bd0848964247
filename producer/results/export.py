"""`producer results`: a run's results as JSONL, CSV, Parquet or OpenAI lines, on stdout or in an atomic file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from models.params import GenerationParams
from models.settings import Settings
from producer.atomic_file import atomic_file, is_stream
from producer.console import data_out, say
from producer.errors import UsageError
from producer.options import EXPORT_FORMATS
from producer.render import check_csv_safe, to_json, write_csv, write_jsonl
from producer.results.database import reading
from producer.results.openai_results import openai_lines
from producer.results.parquet_file import JsonType, write_parquet
from producer.results.queries import EXPORTED_COLUMNS, find_run, job_values, results
from producer.results.selection import Selection

FORMATS = ("jsonl", "csv", "parquet", "openai")

#: Columns of any shape.
NESTED = ("params", "metadata", "grid_point", "messages", "chat")

#: Parameters that have a column of their own already, or that tell nothing of an answer.
NO_COLUMN = ("strategy", "seed", "trace")


def export_results(
    settings: Settings,
    reference: str | None,
    format: str | None,
    output: Path | None,
    selection: Selection = Selection(),
    *,
    with_traces: bool = False,
    is_csv_safe: bool = False,
) -> None:
    """Writes the run's results in the order of its input. Raises `UsageError`."""
    format = _format_of(format, output)
    check_csv_safe(format, is_csv_safe=is_csv_safe)
    if format == "parquet" and output is None and sys.stdout.isatty():
        raise UsageError("Parquet is not for a terminal; give a file with -o")
    with reading(settings) as database:
        run_id = find_run(database, reference)
        _export(database, run_id, format, output, selection, with_traces=with_traces, is_csv_safe=is_csv_safe)


def _export(
    database: Engine,
    run_id: str,
    format: str,
    output: Path | None,
    selection: Selection,
    *,
    with_traces: bool,
    is_csv_safe: bool,
) -> None:
    rows = results(database, run_id, selection, with_traces=with_traces or format == "openai")
    if format == "openai":
        _write_openai(rows, output)
        return
    varied = _varied_parameters(database, run_id)
    columns = (*EXPORTED_COLUMNS, *varied, *(["trace"] if with_traces else []))
    counted = _Counted({**row, **{name: row["params"].get(name) for name in varied}} for row in rows)
    with _destination(output) as file:
        if format == "jsonl":
            write_jsonl(({name: row[name] for name in columns} for row in counted), file)
        elif format == "csv":
            write_csv(columns, ([row[name] for name in columns] for row in counted), file, is_safe=is_csv_safe)
        else:
            write_parquet(columns, counted, _types_of(database, run_id, varied), file.buffer)
    say(f"{counted.number:,} rows written to {_place(output)}")


def _format_of(format: str | None, output: Path | None) -> str:
    """The format that is named, or the one of the file's name. Raises `UsageError`."""
    if format is not None:
        if format not in FORMATS:
            raise UsageError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}")
        return format
    suffix = ".jsonl" if output is None else output.suffix.lower()
    if suffix not in EXPORT_FORMATS:
        raise UsageError(
            f"cannot tell the format of {output} by its name: end it in {', '.join(EXPORT_FORMATS)}, "
            f"or give --format {'|'.join(FORMATS)}"
        )
    return EXPORT_FORMATS[suffix]


class _Counted:
    """Rows that are counted as they pass."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._rows = rows
        self.number = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self._rows:
            self.number += 1
            yield row


def _varied_parameters(database: Engine, run_id: str) -> list[str]:
    """The parameters that are not the same for all jobs of the run: each is a column."""
    first: dict[str, Any] | None = None
    varied: set[str] = set()
    for values in job_values(database, run_id, "params", distinct=True):
        params = values["params"]
        first = params if first is None else first
        varied.update(name for name in {*first, *params} if first.get(name) != params.get(name))
    return [name for name in GenerationParams.model_fields if name in varied and name not in NO_COLUMN]


def _types_of(database: Engine, run_id: str, varied: Iterable[str]) -> dict[str, JsonType]:
    types = {name: JsonType() for name in NESTED}
    for values in job_values(database, run_id, *NESTED):
        for name, value in values.items():
            types[name].see(value)
    return types | {name: types["params"].keys.get(name, JsonType()) for name in varied}


def _place(output: Path | None) -> str:
    return "stdout" if output is None else str(output)


def errors_path(output: Path | None) -> Path | None:
    """The file of unanswered requests, beside the file of answers; None beside a pipe or a terminal."""
    if output is None or is_stream(output):
        return None
    return output.with_name(f"{output.stem}.errors{output.suffix}")


def _write_openai(rows: Iterable[dict[str, Any]], output: Path | None) -> None:
    numbers = [0, 0]  # without an answer, answered
    beside = errors_path(output)
    with _destination(output) as answers, _destination(beside) as errors:
        for is_answered, line in openai_lines(rows):
            numbers[is_answered] += 1
            if is_answered or beside is not None:
                (answers if is_answered else errors).write(to_json(line) + "\n")
    say(f"{numbers[True]:,} answers written to {_place(output)}")
    if numbers[False]:
        where = "give -o to have them in a file" if beside is None else f"they are in {beside}"
        say(f"{numbers[False]:,} requests have no answer; {where}")


@contextmanager
def _destination(output: Path | None) -> Iterator[Any]:
    if output is None:
        yield data_out()
    else:
        with atomic_file(output) as file:
            yield file
