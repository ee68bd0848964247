"""The options that several commands share, declared once, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from models.settings import Settings
from producer.errors import UsageError
from producer.grid import RULES, Grid, parse_option

GRID = "Decoding (a comma list makes a grid of all combinations)"
PLACES = "Places"

Model = Annotated[str | None, typer.Option(help="hub id or folder (default: Qwen/Qwen2-0.5B)", rich_help_panel=PLACES)]
Database = Annotated[
    str | None, typer.Option(help="SQLAlchemy URL (default: <home>/nocturne.db)", rich_help_panel=PLACES)
]
Broker = Annotated[str | None, typer.Option(help="Redis URL", rich_help_panel=PLACES)]
Home = Annotated[Path | None, typer.Option(help="embedded state (default: .nocturne)", rich_help_panel=PLACES)]

Strategy = Annotated[str | None, typer.Option(help="greedy, sample, nucleus, beam", rich_help_panel=GRID)]
Temperature = Annotated[str | None, typer.Option(help="sample, nucleus: above 0", rich_help_panel=GRID)]
TopP = Annotated[str | None, typer.Option(help="nucleus: in (0, 1]", rich_help_panel=GRID)]
TopK = Annotated[str | None, typer.Option(help="sample: most tokens kept", rich_help_panel=GRID)]
MinP = Annotated[str | None, typer.Option(help="sample: least relative probability", rich_help_panel=GRID)]
RepetitionPenalty = Annotated[str | None, typer.Option(help="1 changes nothing", rich_help_panel=GRID)]
NumBeams = Annotated[str | None, typer.Option(help="beam: hypotheses side by side", rich_help_panel=GRID)]
NumReturn = Annotated[str | None, typer.Option(help="beam: hypotheses returned", rich_help_panel=GRID)]
LengthPenalty = Annotated[str | None, typer.Option(help="beam: exponent of the length", rich_help_panel=GRID)]
MaxNewTokens = Annotated[
    str | None, typer.Option(help="most tokens of an answer (default: 1000)", rich_help_panel=GRID)
]
Samples = Annotated[str | None, typer.Option("--n", help="samples of each prompt", rich_help_panel=GRID)]
TopLogprobs = Annotated[str | None, typer.Option(help="alternatives kept per token", rich_help_panel=GRID)]
Repeat = Annotated[int, typer.Option(min=1, help="each combination so many times", rich_help_panel=GRID)]
Stop = Annotated[list[str] | None, typer.Option(help="stop string; may be given several times")]
Trace = Annotated[str | None, typer.Option(help="none, tokens or top:k")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="of the run: jobs derive theirs from it")]
Priority = Annotated[int, typer.Option(min=0, max=9, help="9 goes first")]
Name = Annotated[str | None, typer.Option(help="a name for the run")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress and no summary")]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]


def settings_from(**flags: Any) -> Settings:
    """Settings with the given flags on top of the environment. Raises `UsageError`."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise UsageError(f"NOCTURNE_{name.upper()}: {first['msg'].lower()}, got {first['input']!r}") from error


def grid_from(*, stop: list[str] | None, trace: str | None, repeat: int, **lists: str | None) -> Grid:
    """The grid of the command line. Raises `UsageError`."""
    values = {name: parse_option(name, text) for name, text in lists.items() if text is not None}
    if stop:
        if not all(stop):
            raise UsageError(f"--stop {RULES['stop']}")
        values["stop"] = [stop]
    if trace is not None:
        values["trace"] = [trace]
    return Grid(values, repeat)
