"""Statements and the commands beside them, of psql and of sqlite3, in one session."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sqlalchemy import Engine

from producer.errors import UsageError
from producer.results.sql import catalog
from producer.results.sql.examples import EXAMPLES, Example
from producer.results.sql.output import FORMATS, SqlOutput, print_rows, print_text
from producer.results.sql.spool import Spool
from producer.results.sql.statement import answer
from producer.results.sql.statements import command_of, split


class Leave(Exception):
    """The person wants to leave the console."""


class Shell:
    """Runs what is typed, one input at a time. Every error is a `UsageError`."""

    def __init__(self, database: Engine, output: SqlOutput) -> None:
        self._database = database
        self.output = output

    def run(self, typed: str) -> None:
        """Runs a command, or statements one after the other. Raises `UsageError` and `Leave`."""
        words = command_of(typed)
        if words is not None:
            self._run_command(words)
            return
        statements, rest = split(typed)
        for statement in [*statements, rest.strip()] if rest.strip() else statements:
            self._run_statement(statement)

    def _run_statement(self, statement: str) -> None:
        started = time.monotonic()
        with answer(self._database, statement, self.output.timeout) as found:
            print_rows(found.columns, found.rows, self.output, time.monotonic() - started)

    def _run_command(self, words: list[str]) -> None:
        name, *arguments = words
        for command in COMMANDS:
            if name.lower() in command.names:
                if len(arguments) > command.max_arguments:
                    raise UsageError(f"{name} takes {command.max_arguments or 'no'} argument; .help lists the commands")
                command.run(self, arguments)
                return
        raise UsageError(f"there is no command {name}; .help lists them")

    def print_table(self, columns: list[str], rows: list[tuple[str, ...]]) -> None:
        with Spool() as spool:
            spool.extend(rows)
            widest = replace(self.output, format="table", expanded="off")
            print_rows(columns, spool, widest)

    def show_help(self, arguments: list[str]) -> None:  # noqa: ARG002
        rows = [(" ".join([command.names[0], command.usage]).strip(), " ".join(command.names[1:]), command.help)
                for command in COMMANDS]  # fmt: skip
        widths = [max(len(row[index]) for row in rows) for index in (0, 1)]
        lines = [f"{first:{widths[0]}}  {others:{widths[1]}}  {told}" for first, others, told in rows]
        ends = "A statement ends with ; and may have several lines. Ctrl-C drops it or stops it, Ctrl-D leaves."
        print_text("\n".join([*lines, "", ends]), self.output)

    def show_tables(self, arguments: list[str]) -> None:  # noqa: ARG002
        found: list[tuple[str, ...]] = [*catalog.tables(self._database)]
        self.print_table(["name", "kind", "one row is"], found)

    def show_schema(self, arguments: list[str]) -> None:
        found = catalog.definitions(self._database)
        wanted = [self._known(arguments[0], found)] if arguments else list(found)
        print_text("\n\n".join(found[name] for name in wanted), self.output)

    def describe(self, arguments: list[str]) -> None:
        if not arguments:
            self.show_tables([])
            return
        found = catalog.columns(self._database)
        self.print_table(["column", "type"], [*found[self._known(arguments[0], found)]])

    def show_examples(self, arguments: list[str]) -> None:
        dialect = self._database.dialect.name
        if arguments:
            statement = find_example(arguments[0]).statement(dialect)
            print_text(f"{statement};\n", self.output)
            self._run_statement(statement)
        else:
            print_text(examples_text(dialect), self.output)

    def set_expanded(self, arguments: list[str]) -> None:
        flipped = {"on": "off", "off": "on", "auto": "on"}[self.output.expanded]
        self.output = replace(self.output, expanded=_one_of(arguments, ("on", "off", "auto"), flipped))
        print_text(f"vertical rows: {self.output.expanded}", self.output)

    def set_format(self, arguments: list[str]) -> None:
        self.output = replace(self.output, format=_one_of(arguments, FORMATS, self.output.format))
        print_text(f"format: {self.output.format}", self.output)

    def set_pager(self, arguments: list[str]) -> None:
        flipped = "off" if self.output.has_pager else "on"
        self.output = replace(self.output, has_pager=_one_of(arguments, ("on", "off"), flipped) == "on")
        print_text(f"pager: {'on' if self.output.has_pager else 'off'}", self.output)

    def leave(self, arguments: list[str]) -> None:  # noqa: ARG002
        raise Leave

    def _known(self, name: str, found: Mapping[str, object]) -> str:
        if name not in found:
            raise UsageError(f"there is no table or view {name!r}; .tables lists them")
        return name


@dataclass(frozen=True)
class Command:
    """A command of the console: its names, the first in the manner of sqlite3, and its arguments."""

    names: tuple[str, ...]
    usage: str
    help: str
    run: Callable[[Shell, list[str]], None]

    @property
    def max_arguments(self) -> int:
        return len(self.usage.split())


COMMANDS = (
    Command((".help", "\\?", "help", "?"), "", "this list", Shell.show_help),
    Command((".tables", "\\dt", "\\dv"), "", "the tables and views", Shell.show_tables),
    Command((".columns", "\\d"), "[NAME]", "the columns of a table or view", Shell.describe),
    Command((".schema",), "[NAME]", "the SQL of one or all", Shell.show_schema),
    Command((".examples",), "[NAME]", "questions to begin with; NAME runs one", Shell.show_examples),
    Command((".vertical", "\\x"), "[on|off|auto]", "a line for each column; auto: if too wide", Shell.set_expanded),
    Command((".mode", ".format"), "[FORMAT]", f"{', '.join(FORMATS)}", Shell.set_format),
    Command((".pager",), "[on|off]", "long output through PAGER", Shell.set_pager),
    Command((".exit", ".quit", "\\q", "exit", "quit"), "", "leave", Shell.leave),
)


def find_example(name: str) -> Example:
    """Raises `UsageError`."""
    for example in EXAMPLES:
        if example.name == name:
            return example
    raise UsageError(f"there is no example {name!r}; there are {', '.join(each.name for each in EXAMPLES)}")


def examples_text(dialect: str) -> str:
    """Every example with its name and question."""
    return "\n\n".join(f"-- {each.name}: {each.question}\n{each.statement(dialect)};" for each in EXAMPLES) + "\n"


def _one_of(arguments: list[str], known: tuple[str, ...], default: str) -> str:
    if not arguments:
        return default
    if arguments[0] not in known:
        raise UsageError(f"give one of {', '.join(known)}, got {arguments[0]!r}")
    return arguments[0]
