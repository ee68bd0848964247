"""The console of `producer sql`: several lines, history, completion; an error or Ctrl-C ends its statement only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from prompt_toolkit.output import create_output
from pygments.lexers.sql import SqlLexer
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models.database.connection import server_version
from models.database.faults import DatabaseUnavailable, database_name, is_unavailable, unavailable
from producer.console import say
from producer.errors import UsageError
from producer.results.sql import catalog
from producer.results.sql.shell import COMMANDS, Leave, Shell
from producer.results.sql.statements import is_finished

HISTORY = Path("~/.nocturne_sql_history")

PROMPT, CONTINUATION = "nocturne> ", "      ... "

KEYWORDS = (
    "select", "from", "where", "group by", "order by", "having", "limit", "join", "left join", "on", "as", "and", "or",
    "not", "null", "is", "in", "like", "between", "case", "when", "then", "else", "end", "distinct", "with", "union",
    "count", "sum", "avg", "min", "max", "over", "partition by", "desc",
)  # fmt: skip


class PrivateHistory(FileHistory):
    """Typed statements in a file that its owner alone reads; a disk that refuses costs the history only."""

    def load_history_strings(self) -> Iterable[str]:
        with suppress(OSError):
            return list(super().load_history_strings())
        return []

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            os.close(os.open(self.filename, os.O_CREAT | os.O_WRONLY, 0o600))
            super().store_string(string)


def run_console(database: Engine, shell: Shell, **streams: Any) -> None:
    """Runs what is typed until the person leaves; `streams` are those of prompt_toolkit."""
    place = f"{server_version(database)} at {database_name(database.url)}"
    say(f"{place}, read-only; .help lists the commands, Ctrl-D leaves")
    session = _session(database, **streams)
    while True:
        try:
            _run(shell, session.prompt(PROMPT))
        except KeyboardInterrupt:
            continue  # drops what was typed
        except (EOFError, Leave):
            return


def _run(shell: Shell, typed: str) -> None:
    try:
        shell.run(typed)
    except (UsageError, DatabaseUnavailable) as error:
        say(f"error: {error}")
    except DBAPIError as error:
        if not is_unavailable(error):
            raise
        say(f"error: {unavailable(error)}")
    except KeyboardInterrupt:
        say("interrupted: the statement was stopped")


def _session(database: Engine, **streams: Any) -> PromptSession[str]:
    if not streams and not sys.stdout.isatty():
        streams = {"output": create_output(always_prefer_tty=True)}  # the rows go to a file, the prompt to the person
    return PromptSession(
        history=PrivateHistory(str(HISTORY.expanduser())),
        multiline=True,
        key_bindings=_keys(),
        prompt_continuation=CONTINUATION,
        lexer=PygmentsLexer(SqlLexer),
        completer=_completer(database),
        complete_while_typing=False,
        **streams,
    )


def _keys() -> KeyBindings:
    """Enter ends an input that is finished, and begins a line in any other."""
    keys = KeyBindings()

    def is_typed() -> bool:
        from prompt_toolkit.application import get_app

        return is_finished(get_app().current_buffer.text)

    @keys.add("enter", filter=Condition(is_typed))
    def _accept(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    return keys


def _completer(database: Engine) -> WordCompleter:
    found = catalog.columns(database)
    names = {name for columns in found.values() for name, _ in columns}
    marked = [name for command in COMMANDS for name in command.names if len(name) > 1]
    return WordCompleter(sorted({*found, *names, *KEYWORDS}) + marked, ignore_case=True, WORD=False)
