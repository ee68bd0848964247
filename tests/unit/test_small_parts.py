"""Small parts of the command line, each by itself."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from producer.duration import parse_duration
from producer.errors import UsageError
from producer.option_groups import flat
from producer.prompts.duplicate_ids import DuplicateFinder, FirstUses
from producer.results.report import is_json, repetition
from producer.results.show import colour_of


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90s", timedelta(seconds=90)), ("30m", timedelta(minutes=30)), ("1.5h", timedelta(minutes=90)),
        ("2d", timedelta(days=2)),
    ],
)  # fmt: skip
def test_durations(text: str, duration: timedelta) -> None:
    assert parse_duration("--expires", text) == duration


@pytest.mark.parametrize("text", ["", "8", "h", "-1h", "0s", "8 hours", "1e3h", "99999999999d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="--expires must be a duration such as"):
        parse_duration("--expires", text)


def test_ids_that_come_twice_are_found_among_many() -> None:
    ids = DuplicateFinder()
    for number in range(20_000):
        ids.add(f"job-{number}")
    assert ids.duplicate_hashes() == frozenset()
    ids.add("job-77")
    watch = FirstUses(ids.duplicate_hashes())
    assert watch.first_line("job-76", 1) is None
    assert watch.first_line("job-77", 78) is None
    assert watch.first_line("job-77", 90) == 78
    assert DuplicateFinder().duplicate_hashes() == frozenset()


@dataclass(frozen=True)
class Shared:
    size: Annotated[int, typer.Option(help="how large")] = 3
    colour: Annotated[str | None, typer.Option()] = None


def test_a_dataclass_becomes_options() -> None:
    seen = []

    def command(word: Annotated[str, typer.Argument()], shared: Shared, loud: bool = False) -> None:
        seen.append((word, shared, loud))

    app = typer.Typer()
    app.command()(flat(command))
    assert list(inspect.signature(flat(command)).parameters) == ["word", "size", "colour", "loud"]
    assert CliRunner().invoke(app, ["x", "--size", "5", "--loud"]).exit_code == 0
    assert CliRunner().invoke(app, ["y"]).exit_code == 0
    assert seen == [("x", Shared(size=5), True), ("y", Shared(), False)]
    assert "how large" in CliRunner().invoke(app, ["--help"]).output


def test_numbers_of_the_report() -> None:
    assert repetition("") == repetition("one two three") == 0.0
    assert repetition("a b a b a b") == pytest.approx(1 - 2 / 5)
    assert is_json('{"sum": 1}') and not is_json("{")


def test_colours_go_with_probability() -> None:
    assert [colour_of(logprob) for logprob in (0.0, -0.5, -1.0, -3.0, -9.0, -1e9)] == [
        "green", "cyan", "yellow", "magenta", "red", "red"
    ]  # fmt: skip
