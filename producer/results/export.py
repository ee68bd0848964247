"""`producer results`: a run's results as JSONL, CSV, Parquet or OpenAI lines, on stdout or in an atomic file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from models.settings import Settings
from producer.atomic_file import atomic_file
from producer.console import say
from producer.errors import UsageError
from producer.render import to_json, write_csv, write_jsonl
from producer.results.database import readable_database
from producer.results.openai_results import openai_lines
from producer.results.queries import RESULT_COLUMNS, find_run, results
from producer.results.selection import Selection

FORMATS = ("jsonl", "csv", "parquet", "openai")
ROWS_PER_GROUP = 5_000

JSON_TEXT = ("params", "metadata", "grid_point", "trace")  # of any shape: JSON text in CSV and Parquet


def export_results(
    settings: Settings,
    reference: str | None,
    format: str,
    output: Path | None,
    selection: Selection = Selection(),
    *,
    with_traces: bool = False,
) -> None:
    """Writes the run's results in the order of its input. Raises `UsageError`."""
    if format not in FORMATS:
        raise UsageError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}")
    if format == "parquet" and output is None and sys.stdout.isatty():
        raise UsageError("Parquet is not for a terminal; give a file with -o")
    database = readable_database(settings)
    run_id = find_run(database, reference)
    rows = results(database, run_id, selection, with_traces=with_traces or format == "openai")
    columns = (*RESULT_COLUMNS, "trace") if with_traces else RESULT_COLUMNS
    if format == "openai":
        _write_openai(rows, output)
        return
    with _destination(output) as file:
        if format == "jsonl":
            write_jsonl(({name: row[name] for name in columns} for row in rows), file)
        elif format == "csv":
            write_csv(columns, ([row[name] for name in columns] for row in rows), file)
        else:
            _write_parquet(columns, rows, file.buffer)


def errors_path(output: Path) -> Path:
    """The file of unanswered requests, beside the file of answers."""
    return output.with_name(f"{output.stem}.errors{output.suffix}")


def _write_openai(rows: Iterable[dict[str, Any]], output: Path | None) -> None:
    num_errors = 0
    with _destination(output) as answers, _destination(None if output is None else errors_path(output)) as errors:
        for is_answered, line in openai_lines(rows):
            num_errors += not is_answered
            if is_answered or output is not None:
                (answers if is_answered else errors).write(to_json(line) + "\n")
    if num_errors:
        where = "give -o to have them in a file" if output is None else f"they are in {errors_path(output)}"
        say(f"{num_errors:,} requests have no answer; {where}")


def _write_parquet(columns: Iterable[str], rows: Iterable[dict[str, Any]], file: IO[bytes]) -> None:
    """Writes row groups of a few thousand, so that memory stays flat."""
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([(name, _arrow_type(name)) for name in columns])
    remaining = iter(rows)
    with parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(remaining, ROWS_PER_GROUP)):
            plain = [{name: _plain(name, row[name]) for name in schema.names} for row in group]
            writer.write_table(pyarrow.Table.from_pylist(plain, schema=schema))


def _arrow_type(name: str) -> Any:
    import pyarrow

    if name in ("job_id", "seed", "sample_index", "prompt_tokens", "completion_tokens", "attempts"):
        return pyarrow.int64()
    if name in ("cumulative_logprob", "score") or name.endswith("_seconds"):
        return pyarrow.float64()
    return pyarrow.timestamp("us", tz="UTC") if name.endswith("_at") else pyarrow.string()


def _plain(name: str, value: Any) -> Any:
    return to_json(value) if name in JSON_TEXT and value is not None else value


@contextmanager
def _destination(output: Path | None) -> Iterator[Any]:
    if output is None:
        yield sys.stdout
    else:
        with atomic_file(output) as file:
            yield file
