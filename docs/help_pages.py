"""Generates `docs/help.md` from the commands: `python -m docs.help_pages` writes it, a test compares it."""

from __future__ import annotations

from collections.abc import Iterator

import typer
from typer.testing import CliRunner

from producer.cli import app as producer_app
from tests.support.processes import ROOT
from worker.cli import app as worker_app

PAGE = ROOT / "docs" / "help.md"
WIDTH = 100

HEAD = "# Every command\n\nMade from the commands themselves with `make docs`; a test fails where it is stale.\n"


def commands_of(app: typer.Typer) -> Iterator[list[str]]:
    """The words of each command line, such as `db upgrade`; the program's own, without words, first."""
    yield []
    for command in app.registered_commands:
        yield [command.name or str(command.callback.__name__)]  # type: ignore[union-attr]
    for group in app.registered_groups:
        assert group.name is not None and group.typer_instance is not None
        yield from ([group.name, *words] for words in commands_of(group.typer_instance))


def help_of(app: typer.Typer, name: str, words: list[str]) -> str:
    environment = {"COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    result = CliRunner().invoke(app, [*words, "--help"], prog_name=name, env=environment)
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.output.strip().splitlines()]
    return "\n".join(lines)


def page() -> str:
    parts = [HEAD]
    for app, name in ((producer_app, "producer"), (worker_app, "worker")):
        for words in commands_of(app):
            parts.append(f"## {' '.join([name, *words])}\n\n```text\n{help_of(app, name, words)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
