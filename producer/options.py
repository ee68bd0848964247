"""The options that several commands share, declared once, in groups, and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from models.settings import InvalidSettings, Settings, read_settings
from producer.duration import parse_duration
from producer.errors import UsageError
from producer.prompts.grid import RULES, Grid, parse_option
from producer.prompts.records import FORMATS, ReaderOptions

GRID = "Decoding (a comma list makes a grid of all combinations)"
CONNECTIONS = "Connections"
RUN = "The run"
INPUT = "The file"

ON_DUPLICATE = ("skip", "error", "rerun")


def _grid(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=GRID)


def _connection(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel=CONNECTIONS)


def _input(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=INPUT)


def _of_run(help: str, *names: str, **limits: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=RUN, **limits)


AsJson = Annotated[bool, typer.Option("--json", help="for programs: what came of it, as JSON on stdout")]


@dataclass(frozen=True)
class OutputOptions:
    """How much is said meanwhile, and how the end is told."""

    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress and no summary")] = False
    json: AsJson = False


@dataclass(frozen=True)
class DatabaseOptions:
    """Where what is read lies."""

    database: Annotated[str | None, _connection("SQLAlchemy URL (default: <home>/nocturne.db)")] = None
    home: Annotated[Path | None, _connection("embedded state (default: .nocturne)")] = None

    def settings(self) -> Settings:
        """Settings with these flags on top of the environment. Raises `UsageError`."""
        return settings_from(**vars(self))


@dataclass(frozen=True)
class BrokerOptions(DatabaseOptions):
    """… and the queue of the workers."""

    broker: Annotated[str | None, _connection("Redis URL (default: the embedded one)")] = None


@dataclass(frozen=True)
class ConnectionOptions(BrokerOptions):
    """… and the model."""

    model: Annotated[str | None, _connection("hub id or folder (default: Qwen/Qwen2-0.5B)")] = None


@dataclass(frozen=True)
class DecodingOptions:
    """How prompts are decoded; each comma list is a dimension of the grid."""

    strategy: Annotated[str | None, _grid("greedy, sample, nucleus, beam")] = None
    temperature: Annotated[str | None, _grid("sample, nucleus: above 0")] = None
    top_p: Annotated[str | None, _grid("nucleus: in (0, 1]")] = None
    top_k: Annotated[str | None, _grid("sample: most tokens kept")] = None
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
    """What holds for the run as a whole."""

    name: Annotated[str | None, _of_run("a name; the same file under the same name is submitted once")] = None
    seed: Annotated[int | None, _of_run("jobs derive theirs from it", min=0, max=2**31 - 1)] = None
    priority: Annotated[int, _of_run("0 … 9, 9 goes first", min=0, max=9)] = 5
    expires: Annotated[str | None, _of_run("what has not started by then is not run: 8h, 30m, 2d")] = None
    on_duplicate: Annotated[str, _of_run("a job of that name is there already: skip, error or rerun")] = "skip"

    def check(self) -> None:
        """Raises `UsageError`."""
        if self.on_duplicate not in ON_DUPLICATE:
            raise UsageError(f"--on-duplicate must be one of {', '.join(ON_DUPLICATE)}, got {self.on_duplicate!r}")
        self.expires_after()

    def expires_after(self) -> timedelta | None:
        """Raises `UsageError`."""
        return None if self.expires is None else parse_duration("--expires", self.expires)


@dataclass(frozen=True)
class InputOptions:
    """How the file is read."""

    input_format: Annotated[str | None, _input(f"{', '.join(FORMATS)} (default: by the file's name)")] = None
    prompt_column: Annotated[str | None, _input("the column or field that holds the prompt")] = None
    template: Annotated[str | None, _input('prompt made of columns, such as "Summarise: {text}" (Jinja2)')] = None
    replace_nul: Annotated[bool, _input("U+FFFD for NUL characters", "--replace-nul")] = False
    skip_invalid: Annotated[bool, _input("write bad lines beside the file", "--skip-invalid")] = False
    dry_run: Annotated[bool, _input("only show what would be submitted", "--dry-run")] = False
    yes: Annotated[bool, _input("also a grid of more than a million jobs", "--yes")] = False

    def reader_options(self) -> ReaderOptions:
        return ReaderOptions(self.input_format, self.prompt_column, self.template, self.replace_nul)


def settings_from(**flags: Any) -> Settings:
    """Settings with the given flags on top of the environment. Raises `UsageError`."""
    try:
        return read_settings(**flags)
    except InvalidSettings as error:
        raise UsageError(str(error)) from error
