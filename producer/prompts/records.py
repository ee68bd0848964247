"""Prompt files of every format as records: JSONL (native or OpenAI's), CSV, Parquet and plain text.

A record is a line's or row's fields, or what is wrong with it. Files are read a line or a batch at a time, so they
may be of any length.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from models.params import GenerationParams
from producer.errors import UsageError
from producer.prompts.files import base_suffix, open_file
from producer.prompts.openai_lines import UnsupportedLine, is_openai_line, native_line
from producer.prompts.prompt_template import PromptTemplate, TemplateProblem

MAX_LINE_BYTES = 16 * 2**20
ROWS_PER_BATCH = 1_000

FORMAT_OF_SUFFIX = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".txt": "text", "": "jsonl",
}  # fmt: skip
FORMATS = ("jsonl", "csv", "tsv", "parquet", "text")


@dataclass(frozen=True)
class ReaderOptions:
    """How a file is read; `format` None goes by its name."""

    format: str | None = None
    prompt_column: str | None = None
    template: str | None = None
    replace_nul: bool = False


class InvalidLine(Exception):
    """Raised while a line is read; `field` is empty where the line as a whole is wrong."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field, self.problem = field, problem


@dataclass(frozen=True)
class Record:
    """One line or row; `raw` is what stood there, for the file of invalid lines."""

    number: int
    raw: str
    fields: dict[str, Any]
    error: InvalidLine | None = None


def read_records(path: Path, options: ReaderOptions) -> Iterator[Record]:
    """Every record that is not blank. Raises `UsageError` where the file as a whole cannot be used."""
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
        yield record if record.error is not None else _finished(record, options, template)


def _format_of(path: Path, options: ReaderOptions) -> str:
    if options.format is not None:
        if options.format not in FORMATS:
            raise UsageError(f"--input-format must be one of {', '.join(FORMATS)}, got {options.format!r}")
        return options.format
    suffix = base_suffix(path)
    if suffix not in FORMAT_OF_SUFFIX:
        raise UsageError(f"cannot tell the format of {path} by its name; give --input-format {'|'.join(FORMATS)}")
    return FORMAT_OF_SUFFIX[suffix]


def _finished(record: Record, options: ReaderOptions, template: PromptTemplate | None) -> Record:
    """The record with its prompt in `prompt`, and without NUL where that was asked."""
    fields = record.fields
    try:
        if options.replace_nul:
            fields = _without_nul(fields)
        if is_openai_line(fields):
            fields = native_line(fields)
        if template is not None:
            fields = {**fields, "prompt": template.render(fields)}
        elif options.prompt_column is not None:
            if options.prompt_column not in fields:
                raise InvalidLine(options.prompt_column, "is missing, and --prompt-column names it")
            fields = dict(fields)
            fields["prompt"] = fields.pop(options.prompt_column)
    except UnsupportedLine as error:
        return Record(record.number, record.raw, {}, InvalidLine(error.field, error.problem))
    except TemplateProblem as error:
        return Record(record.number, record.raw, {}, InvalidLine("", str(error)))
    except InvalidLine as error:
        return Record(record.number, record.raw, {}, error)
    return Record(record.number, record.raw, fields)


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nul(inner) for inner in value]
    return value


CheckColumns = Callable[[list[str]], None]


def _read_jsonl(path: Path, _: CheckColumns) -> Iterator[Record]:
    for number, raw in _lines(path):
        text = ""
        try:
            if text := _decode(raw, number).strip():
                yield Record(number, text, _load_object(text))
        except InvalidLine as error:
            yield Record(number, text or raw[:1000].decode("utf-8", "replace"), {}, error)


def _read_text(path: Path, _: CheckColumns) -> Iterator[Record]:
    for number, raw in _lines(path):
        try:
            if (text := _decode(raw, number).rstrip("\r\n")).strip():
                yield Record(number, text, {"prompt": text})
        except InvalidLine as error:
            yield Record(number, raw[:1000].decode("utf-8", "replace"), {}, error)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers and lines; of one that is too long, its beginning."""
    number = 0
    with open_file(path) as file:
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            yield number, raw
            while len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
                raw = file.readline(MAX_LINE_BYTES + 1)


def _decode(raw: bytes, number: int) -> str:
    if len(raw) > MAX_LINE_BYTES:
        raise InvalidLine("", f"is longer than {MAX_LINE_BYTES // 2**20} MiB; split the prompt")
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidLine("", f"is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from error


def _load_object(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidLine("", f"is not JSON: {error.msg} at column {error.colno}; one object per line") from error
    except RecursionError as error:
        raise InvalidLine("", "is nested too deeply") from error
    except ValueError as error:
        raise InvalidLine("", f"is not usable JSON: {error}") from error
    if not isinstance(record, dict):
        raise InvalidLine("", f"must be a JSON object, got {text[:60]}")
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
                yield Record(number, "", {}, InvalidLine("", f"is not CSV: {error}"))
                continue
            if not row:
                continue
            raw = ",".join(row)
            if len(row) != len(header):
                problem = f"has {len(row)} columns, and the header has {len(header)}"
                yield Record(number, raw, {}, InvalidLine("", problem))
                continue
            yield Record(number, raw, _typed(dict(zip(header, row, strict=True))))


def _typed(row: dict[str, str]) -> dict[str, Any]:
    """CSV knows text only: a parameter's cell is read as JSON where it is some, and an empty one is not given."""
    fields: dict[str, Any] = {}
    for name, cell in row.items():
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
    except InvalidLine as error:
        return Record(number, repr(row), {}, error)
    return Record(number, json.dumps(fields, ensure_ascii=False), fields)


def _json_value(field: str, value: Any) -> Any:
    """A Parquet value as JSON has it."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        raise InvalidLine(field, f"is binary ({len(value)} bytes); cast the column to a string")
    if isinstance(value, dict):
        return {str(key): _json_value(field, inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_json_value(field, inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


_READERS: dict[str, Callable[[Path, CheckColumns], Iterator[Record]]] = {
    "jsonl": _read_jsonl, "text": _read_text, "csv": _read_csv, "tsv": _read_tsv, "parquet": _read_parquet,
}  # fmt: skip
