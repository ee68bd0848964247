"""The options that several commands share, declared once as dataclasses that `option_groups.flat` spreads.

Knows how the values of a group make settings, a grid or reader options, and not what a wing does with them.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from models.model_name import with_revision
from models.settings import (
    InvalidSettings,
    Settings,
    bounds_of,
    help_of,
    option_of,
    read_settings,
)
from models.states import DEFAULT_PRIORITY, NUM_PRIORITIES, JobState
from producer.atomic_file import check_target
from producer.duration import parse_duration
from producer.errors import LineProblem, UsageError
from producer.key_values import json_or_text
from producer.prompts.conversations import ChatOptions, check_template_kwargs
from producer.prompts.grid import RULES, Grid, parse_option
from producer.prompts.records import FORMATS, ReaderOptions
from producer.results.selection import Selection, parse_selection
from producer.terminal_text import is_storable

GRID = "Decoding (a comma list makes a grid of all combinations)"
CONNECTIONS = "Connections"
RUN = "The run"
INPUT = "The file"
WORKER = "The worker"

#: The formats of a file of results, by the end of its name.
EXPORT_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}

ON_DUPLICATE = ("skip", "error", "rerun")


def _grid(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=GRID)


def _connection(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=CONNECTIONS)


def _input(help: str, *names: str, **limits: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=INPUT, **limits)


def _of_run(help: str, *names: str, **limits: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=RUN, **limits)


def _of_worker(setting: str, *names: str, help: str | None = None) -> Any:
    return typer.Option(*names, help=help or help_of(setting), rich_help_panel=WORKER, **bounds_of(setting))


RunArgument = Annotated[str | None, typer.Argument(help="id, its beginning, or name; default: the newest")]
RequiredRun = Annotated[str, typer.Argument(help="id, its beginning, or name")]
AsSuperuser = Annotated[bool, _connection("read as a superuser of PostgreSQL, this once", "--as-superuser")]
CsvSafe = Annotated[
    bool, typer.Option("--csv-safe", help="CSV for spreadsheets: an apostrophe before texts they would compute")
]

AsJson = Annotated[bool, typer.Option("--json", help="for programs: the outcome as JSON on stdout")]


@dataclass(frozen=True)
class OutputOptions:
    """The output of a command: its amount while it works, its form at the end."""

    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress and no summary")] = False
    json: AsJson = False
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the results at the end: .jsonl, .csv or .parquet")
    ] = None

    def check(self) -> None:
        """Raises `UsageError` for an output file that could not be written in the end."""
        if self.output is None:
            return
        if self.output.suffix.lower() not in EXPORT_FORMATS:
            raise UsageError(
                f"-o {self.output}: end the name in {', '.join(EXPORT_FORMATS)}, or use `producer results`"
            )
        if not os.access(self.output.parent, os.W_OK):
            raise UsageError(
                f"-o {self.output}: {self.output.parent} is not a folder that can be written; give another"
            )
        check_target(self.output)

    @property
    def output_format(self) -> str:
        """The format of the output file, by its name."""
        assert self.output is not None
        return EXPORT_FORMATS[self.output.suffix.lower()]


@dataclass(frozen=True)
class WorkerOptions:
    """The worker that a command starts to decode here."""

    device: Annotated[str | None, _of_worker("device")] = None
    dtype: Annotated[str | None, _of_worker("dtype")] = None
    quantize: Annotated[str | None, _of_worker("quantize")] = None
    adapter: Annotated[str | None, _of_worker("adapter")] = None
    max_num_seqs: Annotated[int | None, _of_worker("max_num_seqs")] = None
    max_model_len: Annotated[int | None, _of_worker("max_model_len")] = None
    kv_memory: Annotated[float | None, _of_worker("kv_memory")] = None
    deterministic: Annotated[bool, _of_worker("deterministic", "--deterministic")] = False
    allow_slow: Annotated[bool, _of_worker("allow_slow", "--allow-slow")] = False
    grace_seconds: Annotated[
        float | None,
        _of_worker("grace_seconds", "--grace", help="seconds for running answers to end after Ctrl-C (default: 5)"),
    ] = None

    def given(self) -> dict[str, Any]:
        """The settings that the command line names."""
        return {name: value for name, value in vars(self).items() if value is not None and value is not False}


@dataclass(frozen=True)
class DatabaseOptions:
    """The database that a command opens."""

    database: Annotated[str | None, _connection("SQLAlchemy URL (default: <home>/nocturne.db)")] = None
    home: Annotated[Path | None, _connection("folder of the embedded database and Redis (default: .nocturne)")] = None

    def settings(self, worker: WorkerOptions = WorkerOptions()) -> Settings:
        """Settings with these flags on top of the environment. Raises `UsageError`."""
        try:
            own = {name: value for name, value in vars(self).items() if name in Settings.model_fields}
            return read_settings(**own, **worker.given())
        except InvalidSettings as error:
            raise UsageError(str(error)) from error


@dataclass(frozen=True)
class ReadingOptions(DatabaseOptions):
    """The database a command reads, and the role that it may read by."""

    read_database: Annotated[
        str | None, _connection("SQLAlchemy URL of a role that may only read (default: --database)")
    ] = None


@dataclass(frozen=True)
class BrokerOptions(DatabaseOptions):
    """The database, and the Redis that a command sends to."""

    broker: Annotated[str | None, _connection("Redis URL (default: the embedded one)")] = None

    def settings_of_resuming(self, worker: WorkerOptions) -> Settings:
        """The same for a command that decodes here only without a broker. Raises `UsageError`."""
        settings = self.settings(worker)
        if settings.broker is not None and (unused := worker.given()):
            raise UsageError(
                f"--{option_of(next(iter(unused)))} is an option of the worker that decodes here, and with a "
                "broker none is started; leave it out, and give it to `worker start`"
            )
        return settings


@dataclass(frozen=True)
class ConnectionOptions(BrokerOptions):
    """The database, the Redis and the model of a submission."""

    model: Annotated[str | None, _connection("hub id or folder (default: Qwen/Qwen2-0.5B)")] = None
    revision: Annotated[str | None, _connection("branch, tag or commit of a hub model")] = None

    def settings(self, worker: WorkerOptions = WorkerOptions()) -> Settings:
        """The same, with the revision as a part of the model's name. Raises `UsageError`."""
        settings = super().settings(worker)
        if self.revision is None:
            return settings
        try:
            return settings.model_copy(update={"model": with_revision(settings.model, self.revision)})
        except ValueError as error:
            raise UsageError(str(error)) from error


@dataclass(frozen=True)
class DecodingOptions:
    """The parameters of decoding; each comma list is a dimension of the grid."""

    strategy: Annotated[str | None, _grid("greedy, sample, nucleus, beam, model")] = None
    temperature: Annotated[str | None, _grid("sample, nucleus: above 0")] = None
    top_p: Annotated[str | None, _grid("nucleus, or sample without nucleus: in (0, 1]")] = None
    top_k: Annotated[str | None, _grid("nucleus, or sample without nucleus: most tokens kept")] = None
    min_p: Annotated[str | None, _grid("sample: least relative probability")] = None
    repetition_penalty: Annotated[str | None, _grid("1 changes nothing")] = None
    num_beams: Annotated[str | None, _grid("beam: hypotheses side by side")] = None
    num_return: Annotated[str | None, _grid("beam: hypotheses returned")] = None
    length_penalty: Annotated[str | None, _grid("beam: exponent of the length")] = None
    max_new_tokens: Annotated[str | None, _grid("most tokens of an answer (default: 1000)")] = None
    n: Annotated[str | None, _grid("samples of each prompt", "--n")] = None
    top_logprobs: Annotated[str | None, _grid("alternatives kept per token")] = None
    repeat: Annotated[int, typer.Option(min=1, help="each combination so many times", rich_help_panel=GRID)] = 1
    stop: Annotated[list[str] | None, typer.Option(help="stop string; may be given several times")] = None
    trace: Annotated[str | None, typer.Option(help="none, tokens or top:k")] = None

    def grid(self) -> Grid:
        """The grid of the command line. Raises `UsageError`."""
        lists = {name: value for name, value in vars(self).items() if name not in ("repeat", "stop", "trace")}
        values = {name: parse_option(name, text) for name, text in lists.items() if text is not None}
        if self.stop:
            if not all(self.stop):
                raise UsageError(f"--stop {RULES['stop']}")
            values["stop"] = [self.stop]
        if self.trace is not None:
            values["trace"] = [self.trace]
        return Grid(values, self.repeat)


@dataclass(frozen=True)
class SubmitOptions:
    """The properties of the run as a whole."""

    name: Annotated[str | None, _of_run("a name; the same file under the same name is submitted once")] = None
    seed: Annotated[int | None, _of_run("jobs derive theirs from it", min=0, max=2**31 - 1)] = None
    priority: Annotated[int, _of_run("0 … 9, 9 goes first", min=0, max=NUM_PRIORITIES - 1)] = DEFAULT_PRIORITY
    expires: Annotated[str | None, _of_run("jobs not started by then are not run: 8h, 30m, 2d")] = None
    max_running: Annotated[
        int | None, _of_run("most jobs that run at once, over all workers", min=1, max=2**31 - 1)
    ] = None
    keep_prompts: Annotated[bool, _of_run("store the text that the model saw: prompt_text", "--keep-prompts")] = False
    on_duplicate: Annotated[str, _of_run("the run of that name has the job already: skip, error or rerun")] = "skip"
    ignore_model_defaults: Annotated[
        bool, _of_run("decode without what the model's generation config sets", "--ignore-model-defaults")
    ] = False

    def check(self) -> None:
        """Raises `UsageError`."""
        if self.on_duplicate not in ON_DUPLICATE:
            raise UsageError(f"--on-duplicate must be one of {', '.join(ON_DUPLICATE)}, got {self.on_duplicate!r}")
        if self.name is not None and not (self.name.strip() and is_storable(self.name)):
            raise UsageError(f"--name must be a text in UTF-8 that is not blank, got {self.name!r}")
        self.expires_after()

    def expires_after(self) -> timedelta | None:
        """The time a job may wait. Raises `UsageError`."""
        return None if self.expires is None else parse_duration("--expires", self.expires)


@dataclass(frozen=True)
class SelectionOptions:
    """The jobs whose results are wanted."""

    state: Annotated[str | None, typer.Option(help="only jobs in these states, such as failed,expired")] = None
    strategy: Annotated[str | None, typer.Option(help="only these strategies")] = None
    where: Annotated[list[str] | None, typer.Option(help="only where metadata has KEY=VALUE")] = None

    def selection(self) -> Selection:
        """Raises `UsageError`."""
        return parse_selection(self.state, self.strategy, self.where or [])


@dataclass(frozen=True)
class RetryOptions:
    """The kinds of jobs to queue again."""

    failed: Annotated[bool, typer.Option("--failed", help="the failed jobs")] = False
    cancelled: Annotated[bool, typer.Option("--cancelled", help="the cancelled jobs")] = False
    expired: Annotated[bool, typer.Option("--expired", help="the expired jobs")] = False
    error_code: Annotated[
        list[str] | None, typer.Option(help="only jobs that ended by this, such as EngineDied; repeatable")
    ] = None

    def check(self) -> None:
        """Raises `UsageError` for a code that no job can have."""
        for code in self.error_code or ():
            if not is_storable(code):
                raise UsageError(f"--error-code must be a code such as EngineDied, got {code!r}")

    def states(self) -> list[JobState]:
        """The states of the kinds that are named."""
        kinds = {"failed": self.failed, "cancelled": self.cancelled, "expired": self.expired}
        return [JobState(name) for name, is_named in kinds.items() if is_named]


@dataclass(frozen=True)
class InputOptions:
    """The reading of the file, and the part of it that is submitted."""

    input_format: Annotated[str | None, _input(f"{', '.join(FORMATS)} (default: by the file's name)")] = None
    prompt_column: Annotated[str | None, _input("the column or field that holds the prompt")] = None
    template: Annotated[str | None, _input('prompt made of columns, such as "Summarize: {text}" (Jinja2)')] = None
    messages_column: Annotated[str | None, _input("the column or field that holds a conversation")] = None
    chat: Annotated[bool, _input("plain prompts become chats of one message", "--chat")] = False
    system: Annotated[str | None, _input("system message before each chat; a chat's own wins")] = None
    chat_arg: Annotated[
        list[str] | None, _input("KEY=VALUE for the chat template, such as enable_thinking=false; repeatable")
    ] = None
    replace_nul: Annotated[bool, _input("U+FFFD for NUL characters", "--replace-nul")] = False
    encoding: Annotated[str | None, _input("of a text file, such as cp1252 (default: utf-8)")] = None
    metadata_columns: Annotated[str | None, _input("columns to keep as metadata, such as a,b (default: all)")] = None
    id_column: Annotated[str | None, _input("the column or field that holds the custom_id")] = None
    limit: Annotated[int | None, _input("only the first N lines or rows", min=1, metavar="N")] = None
    skip_invalid: Annotated[bool, _input("write bad lines beside the file", "--skip-invalid")] = False
    dry_run: Annotated[bool, _input("only show what would be submitted", "--dry-run")] = False
    yes: Annotated[bool, _input("also a grid of more than a million jobs", "--yes")] = False

    def reader_options(self) -> ReaderOptions:
        """Raises `UsageError`."""
        names = None if self.metadata_columns is None else split_names(self.metadata_columns)
        return ReaderOptions(
            self.input_format,
            self.prompt_column,
            self.template,
            self.replace_nul,
            self.encoding,
            names,
            self.messages_column,
            id_column=self.id_column,
            limit=self.limit,
        )

    def chat_options(self) -> ChatOptions:
        """Raises `UsageError`."""
        if self.system is not None and not self.system:
            raise UsageError("--system is empty; give at least one character, or leave it out")
        return ChatOptions(self.chat, self.system, dict(map(parse_chat_argument, self.chat_arg or ())))


def parse_chat_argument(text: str) -> tuple[str, Any]:
    """The name and the value of a KEY=VALUE; a value that is not JSON is text. Raises `UsageError`."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"--chat-arg must be KEY=VALUE, such as enable_thinking=false, got {text!r}")
    try:
        check_template_kwargs("--chat-arg", {name: value})
    except LineProblem as problem:
        raise UsageError(str(problem)) from problem
    return name, json_or_text(value)


def split_names(text: str) -> tuple[str, ...]:
    """The names of a comma list; a name with a comma stands in quotes, as in a CSV header. Raises `UsageError`."""
    try:
        names = next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error as error:
        raise UsageError(f"--metadata-columns must be a comma list of names, got {text!r}: {error}") from error
    return tuple(name.strip() for name in names if name.strip())
