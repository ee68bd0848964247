"""Prompt files of every format as records: JSON (native lines or OpenAI's), CSV, TSV, Parquet and plain text.

A record is a line's or row's fields, or what is wrong with it. Files are read a line or a batch at a time and may be
of any length. Knows no parameters beyond their names: `lines` says what a field may hold.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

from producer.errors import LineProblem, UsageError
from producer.prompts.files import base_suffix
from producer.prompts.foreign_fields import native_fields
from producer.prompts.openai_lines import asked_model, is_openai_line, native_line
from producer.prompts.prompt_template import PromptTemplate
from producer.prompts.readers.csv_records import read_csv, read_tsv
from producer.prompts.readers.file_kind import check_kind
from producer.prompts.readers.json_records import read_json
from producer.prompts.readers.parquet_records import read_parquet
from producer.prompts.readers.record import (
    MAX_LINE_BYTES,
    OWN_FIELDS,
    PARAMETER_FIELDS,
    FileFacts,
    Record,
    check_nesting,
    shown_names,
    whole_number,
)
from producer.prompts.readers.text_lines import checked_encoding, is_utf8, read_text

__all__ = ["FORMATS", "MAX_LINE_BYTES", "ReaderOptions", "Record", "format_of", "read_records"]

FORMAT_OF_SUFFIX = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".jsonlines": "jsonl", ".jl": "jsonl", "": "jsonl",
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet", ".pq": "parquet", ".txt": "text",
}  # fmt: skip
FORMATS = ("jsonl", "csv", "tsv", "parquet", "text")


@dataclass(frozen=True)
class ReaderOptions:
    """The reading of a file: its format, encoding and columns."""

    format: str | None = None  # None: by the file's name
    prompt_column: str | None = None
    template: str | None = None
    replace_nul: bool = False
    encoding: str | None = None  # None: UTF-8
    metadata_columns: tuple[str, ...] | None = None  # None: all
    messages_column: str | None = None
    id_column: str | None = None
    limit: int | None = None  # None: all

    @cached_property
    def prompt_template(self) -> PromptTemplate | None:
        """The template, compiled. Raises `UsageError`."""
        return None if self.template is None else PromptTemplate(self.template)

    @cached_property
    def data_fields(self) -> frozenset[str]:
        """The fields that the options name: data, whatever other tools call so."""
        template = () if self.prompt_template is None else self.prompt_template.names
        sources = {self.prompt_column or "prompt", self.messages_column or "messages"}
        named = {*(self.metadata_columns or ()), *([self.id_column] if self.id_column is not None else [])}
        return frozenset({*template, *named, *sources})

    def keeps(self, field: str) -> bool:
        """Whether the field goes on, as a part of the job or as metadata."""
        named = self.metadata_columns
        return named is None or field in named or field in OWN_FIELDS or field in PARAMETER_FIELDS or field == "url"


def read_records(path: Path, options: ReaderOptions) -> Iterator[Record]:
    """Every record that is not blank, its prompt in `prompt`. Raises `UsageError` for a file that cannot be read."""
    format = format_of(path, options)
    template = None if options.template is None else PromptTemplate(options.template)  # that counts its own stops
    _check_one_source(options)
    encoding = checked_encoding(options.encoding or "utf-8")
    if format == "parquet" and options.encoding is not None:
        raise UsageError("--encoding is for text files, and Parquet has its own; leave it out")
    check_kind(path, format, is_utf8=is_utf8(encoding))
    facts = FileFacts(partial(_check_columns, path, options, template), encoding, _wanted(options, template))
    unseen, has_problems = set(options.metadata_columns or ()), options.limit is not None
    limit = None if options.limit is None else min(options.limit, sys.maxsize)
    for record in islice(_READERS[format](path, facts), limit):
        unseen -= record.fields.keys()
        if record.problem is None:
            record = _with_named(record, options, template, is_table=format != "jsonl")
        unseen -= record.fields.keys()
        has_problems = has_problems or record.problem is not None
        yield record
    if format == "jsonl" and unseen and not has_problems:
        raise UsageError(f"--metadata-columns names {min(unseen)!r}, and no line of {path} has it")


def _check_one_source(options: ReaderOptions) -> None:
    given = {
        "--prompt-column": options.prompt_column, "--template": options.template,
        "--messages-column": options.messages_column,
    }  # fmt: skip
    if len(named := [name for name, value in given.items() if value is not None]) > 1:
        raise UsageError(f"give either {' or '.join(named)}, not both: each names the prompt")


def format_of(path: Path, options: ReaderOptions) -> str:
    """The file's format, as the options or its name say. Raises `UsageError`."""
    if options.format is not None:
        if options.format not in FORMATS:
            raise UsageError(f"--input-format must be one of {', '.join(FORMATS)}, got {options.format!r}")
        return options.format
    suffix = base_suffix(path)
    if suffix not in FORMAT_OF_SUFFIX:
        raise UsageError(f"cannot tell the format of {path} by its name; give --input-format {'|'.join(FORMATS)}")
    return FORMAT_OF_SUFFIX[suffix]


def _check_columns(path: Path, options: ReaderOptions, template: PromptTemplate | None, columns: list[str]) -> None:
    if template is not None:
        template.check_columns(columns)
    elif options.messages_column is not None:
        if options.messages_column not in columns:
            raise UsageError(
                f"{path} has no column {options.messages_column!r}; its columns are {shown_names(columns)}"
                f"{_near(options.messages_column, columns)}"
            )
    elif (wanted := options.prompt_column or "prompt") not in columns:
        if options.prompt_column is None and "messages" in columns:
            return
        raise UsageError(
            f"{path} has no column {wanted!r}; its columns are {shown_names(columns)}: "
            f"name one with --prompt-column or --messages-column, or give a --template{_near(wanted, columns)}"
        )
    if options.id_column is not None and options.id_column not in columns:
        raise UsageError(
            f"--id-column names {options.id_column!r}, and the columns are {shown_names(columns)}"
            f"{_near(options.id_column, columns)}"
        )
    for name in options.metadata_columns or ():
        if name not in columns:
            raise UsageError(f"--metadata-columns names {name!r}, and the columns are {shown_names(columns)}")


def _near(wanted: str, columns: list[str]) -> str:
    """The hint at a column whose name differs in case or in surrounding space and quotes alone; empty without one."""
    near = next((name for name in columns if name.strip("\ufeff\t \"'").lower() == wanted.strip().lower()), None)
    if near is not None and near.startswith('"'):
        return "; TSV has no quotes: --input-format csv reads a table with them"
    return "" if near is None else f"; did you mean {near!r}?"


def _wanted(options: ReaderOptions, template: PromptTemplate | None) -> frozenset[str] | None:
    """The columns that a table's reader reads; None for all."""
    if options.metadata_columns is None or (template is not None and template.uses_row):
        return None
    named = {*options.metadata_columns, *(template.names if template is not None else ())}
    sources = {
        options.prompt_column or "prompt",
        options.messages_column or "messages",
        options.id_column or "custom_id",
    }
    return frozenset(named | OWN_FIELDS | PARAMETER_FIELDS | sources)


def _with_named(record: Record, options: ReaderOptions, template: PromptTemplate | None, *, is_table: bool) -> Record:
    """The record with the prompt that the options name, and without NUL under --replace-nul."""
    try:
        check_nesting(record.fields)
        fields = _without_nul(record.fields) if options.replace_nul else record.fields
        if is_openai_line(fields):
            record = replace(record, asked_model=asked_model(fields))
            fields = native_line(fields)
        elif not is_table and (template is None or not template.uses_row):
            fields = native_fields(fields, options.data_fields)
        named, source = {} if template is None else {"prompt": template.render(fields, is_table=is_table)}, None
        for name, column in (("prompt", options.prompt_column), ("messages", options.messages_column)):
            if column is not None:
                if column not in fields:
                    raise LineProblem(column, f"is missing, and --{name}-column names it")
                fields = dict(fields)
                named, source = {name: fields.pop(column)}, column
        if options.id_column is not None:
            fields = _with_id(fields, options.id_column)
    except LineProblem as problem:
        return replace(record, fields={}, problem=problem)
    kept = {name: fields[name] for name in fields if options.keeps(name)}
    return replace(record, fields=kept, named=named, column=source)


def _with_id(fields: dict[str, Any], column: str) -> dict[str, Any]:
    """The fields with the column's value as `custom_id`. Raises `LineProblem`."""
    if fields.get(column) in (None, ""):
        raise LineProblem(column, "is missing, and --id-column names it")
    value = whole_number("custom_id", fields[column])
    return {name: kept for name, kept in fields.items() if name != column} | {"custom_id": value}


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nul(inner) for inner in value]
    return value


_READERS: dict[str, Callable[[Path, FileFacts], Iterator[Record]]] = {
    "jsonl": read_json, "text": read_text, "csv": read_csv, "tsv": read_tsv, "parquet": read_parquet,
}  # fmt: skip
