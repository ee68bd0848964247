"""Options that several commands share, declared once as a dataclass."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from producer.option_groups import flat


@dataclass(frozen=True)
class Shared:
    size: Annotated[int, typer.Option(help="how large")] = 3
    color: Annotated[str | None, typer.Option()] = None


def test_a_dataclass_becomes_options() -> None:
    seen = []

    def command(word: Annotated[str, typer.Argument()], shared: Shared, loud: bool = False) -> None:
        seen.append((word, shared, loud))

    app = typer.Typer()
    app.command()(flat(command))
    assert list(inspect.signature(flat(command)).parameters) == ["word", "size", "color", "loud"]
    assert CliRunner().invoke(app, ["x", "--size", "5", "--loud"]).exit_code == 0
    assert CliRunner().invoke(app, ["y"]).exit_code == 0
    assert seen == [("x", Shared(size=5), True), ("y", Shared(), False)]
    assert "how large" in CliRunner().invoke(app, ["--help"]).output
