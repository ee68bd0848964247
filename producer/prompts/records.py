"""Prompt files of every format as records: JSONL (native or OpenAI's), CSV, Parquet and plain text.

A record is a line's or row's fields, or what is wrong with it. Files are read a line or a batch at a time and may be
of any length. Knows no parameters beyond their names: `lines` says what a field may hold.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from models.params import GenerationParams
from producer.errors import LineProblem, UsageError
from producer.prompts.files import base_suffix, open_file
from producer.prompts.openai_lines import is_openai_line, native_line
from producer.prompts.prompt_template import PromptTemplate

MAX_LINE_BYTES = 16 * 2**20
MAX_RAW_BYTES = 1_000  # of a line that cannot be decoded, kept for the file of invalid lines
ROWS_PER_BATCH = 1_000

FORMAT_OF_SUFFIX = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".txt": "text", "": "jsonl",
}  # fmt: skip
FORMATS = ("jsonl", "csv", "tsv", "parquet", "text")


@dataclass(frozen=True)
class ReaderOptions:
    """How a file is read."""

    format: str | None = None  # None: by the file's name
    prompt_column: str | None = None
    template: str | None = None
    replace_nul: bool = False


@dataclass(frozen=True)
class Record:
    """One line or row of a file."""

    number: int
    raw: str  # as it stands in the file, for the file of invalid lines
    fields: dict[str, Any]
    problem: LineProblem | None = None  # set: there are no fields


#: Raises `UsageError` for a header that lacks a column the options name.
CheckColumns = Callable[[list[str]], None]


def read_records(path: Path, options: ReaderOptions) -> Iterator[Record]:
    """Every record that is not blank, its prompt in `prompt`. Raises `UsageError` for a file that cannot be read."""
    format = _format_of(path, options)
    template = None if options.template is None else PromptTemplate(options.template)
    if template is not None and options.prompt_column is not None:
        raise UsageError("give either --prompt-column or --template, not both")

    def check_columns(columns: list[str]) -> None:
        if template is not None:
            template.check_columns(columns)
        elif (wanted := options.prompt_column or "prompt") not in columns:
            raise UsageError(
                f"{path} has no column {wanted!r}; its columns are {', '.join(columns)}: "
                "name one with --prompt-column, or give a --template"
            )

    for record in _READERS[format](path, check_columns):
        if record.problem is None:
            record = _record(record.number, record.raw, partial(_with_prompt, record.fields, options, template))
        yield record


def _format_of(path: Path, options: ReaderOptions) -> str:
    if options.format is not None:
        if options.format not in FORMATS:
            raise UsageError(f"--input-format must be one of {', '.join(FORMATS)}, got {options.format!r}")
        return options.format
    suffix = base_suffix(path)
    if suffix not in FORMAT_OF_SUFFIX:
        raise UsageError(f"cannot tell the format of {path} by its name; give --input-format {'|'.join(FORMATS)}")
    return FORMAT_OF_SUFFIX[suffix]


def _record(number: int, raw: str, parse: Callable[[], dict[str, Any]]) -> Record:
    """The record with the fields that `parse` returns, or with the problem that it raises."""
    try:
        return Record(number, raw, parse())
    except LineProblem as problem:
        return Record(number, raw, {}, problem)


def _with_prompt(fields: dict[str, Any], options: ReaderOptions, template: PromptTemplate | None) -> dict[str, Any]:
    """A record's fields with the prompt in `prompt`, and without NUL under --replace-nul. Raises `LineProblem`."""
    if options.replace_nul:
        fields = _without_nul(fields)
    if is_openai_line(fields):
        fields = native_line(fields)
    if template is not None:
        return {**fields, "prompt": template.render(fields)}
    if options.prompt_column is None:
        return fields
    if options.prompt_column not in fields:
        raise LineProblem(options.prompt_column, "is missing, and --prompt-column names it")
    fields = dict(fields)
    fields["prompt"] = fields.pop(options.prompt_column)
    return fields


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nul(inner) for inner in value]
    return value


def _read_jsonl(path: Path, _: CheckColumns) -> Iterator[Record]:
    for line in _text_lines(path):
        text = line.raw.strip()
        yield line if line.problem is not None else _record(line.number, text, partial(_load_object, text))


def _read_text(path: Path, _: CheckColumns) -> Iterator[Record]:
    for line in _text_lines(path):
        yield line if line.problem is not None else Record(line.number, line.raw, {"prompt": line.raw})


def _text_lines(path: Path) -> Iterator[Record]:
    """Every line that is not blank, without its line end; its fields are not parsed yet."""
    for number, raw in _raw_lines(path):
        try:
            text = _decode(raw, number)
        except LineProblem as problem:
            yield Record(number, raw[:MAX_RAW_BYTES].decode("utf-8", "replace"), {}, problem)
            continue
        if text.strip():
            yield Record(number, text.rstrip("\r\n"), {})


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers and lines; of a line longer than `MAX_LINE_BYTES`, its beginning."""
    number = 0
    with open_file(path) as file:
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            yield number, raw
            while len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
                raw = file.readline(MAX_LINE_BYTES + 1)


def _decode(raw: bytes, number: int) -> str:
    if len(raw) > MAX_LINE_BYTES:
        raise LineProblem("", f"is longer than {MAX_LINE_BYTES // 2**20} MiB; split the prompt")
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise LineProblem("", f"is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from error


def _load_object(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise LineProblem("", f"is not JSON: {error.msg} at column {error.colno}; one object per line") from error
    except RecursionError as error:
        raise LineProblem("", "is nested too deeply") from error
    except ValueError as error:
        raise LineProblem("", f"is not usable JSON: {error}") from error
    if not isinstance(record, dict):
        raise LineProblem("", f"must be a JSON object, got {text[:60]}")
    return record


def _read_csv(path: Path, check_columns: CheckColumns, delimiter: str = ",") -> Iterator[Record]:
    csv.field_size_limit(MAX_LINE_BYTES)
    with open_file(path) as file:
        # Bytes that are not UTF-8 become lone surrogates, which every string is checked for.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
        except csv.Error as error:
            raise UsageError(f"{path}:1: is not CSV: {error}") from error
        if header is None:
            return
        check_columns(header)
        while True:
            number = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Record(number, "", {}, LineProblem("", f"is not CSV: {error}"))
                continue
            if row:
                yield _record(number, ",".join(row), partial(_named_cells, header, row))


def _named_cells(header: list[str], row: list[str]) -> dict[str, Any]:
    """A CSV row as fields. CSV knows text only: a parameter's cell is parsed as JSON, an empty one is not given."""
    if len(row) != len(header):
        raise LineProblem("", f"has {len(row)} columns, and the header has {len(header)}")
    fields: dict[str, Any] = {}
    for name, cell in dict(zip(header, row, strict=True)).items():
        if name not in GenerationParams.model_fields and name not in ("priority", "messages"):
            if name != "custom_id" or cell:
                fields[name] = cell
        elif cell.strip():
            try:
                fields[name] = json.loads(cell)
            except ValueError:
                fields[name] = cell
    return fields


def _read_tsv(path: Path, check_columns: CheckColumns) -> Iterator[Record]:
    return _read_csv(path, check_columns, delimiter="\t")


def _read_parquet(path: Path, check_columns: CheckColumns) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    with open_file(path) as opened:
        try:
            file = parquet.ParquetFile(opened)
            check_columns(file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield _parquet_record(number, row)
        except pyarrow.ArrowException as error:
            raise UsageError(f"cannot read {path}: it is no readable Parquet file ({error})") from error


def _parquet_record(number: int, row: dict[str, Any]) -> Record:
    try:
        fields = {name: _json_value(name, value) for name, value in row.items() if value is not None}
    except LineProblem as problem:
        return Record(number, repr(row), {}, problem)
    return Record(number, json.dumps(fields, ensure_ascii=False), fields)


def _json_value(field: str, value: Any) -> Any:
    """A Parquet value as JSON has it. Raises `LineProblem`."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        raise LineProblem(field, f"is binary ({len(value)} bytes); cast the column to a string")
    if isinstance(value, dict):
        return {str(key): _json_value(field, inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_json_value(field, inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


_READERS: dict[str, Callable[[Path, CheckColumns], Iterator[Record]]] = {
    "jsonl": _read_jsonl, "text": _read_text, "csv": _read_csv, "tsv": _read_tsv, "parquet": _read_parquet,
}  # fmt: skip
