"""Typed text as statements and commands: a semicolon ends a statement, but not within quotes and comments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_PART = re.compile(
    r"""
    (?P<end>;)
    | (?P<blank>\s+ | --[^\n]*(?:\n|\Z) | /\*.*?\*/)
    | (?:(?<![\w$])[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*")
    | \$(?P<tag>(?:[A-Za-z_]\w*)?)\$.*?\$(?P=tag)\$
    | (?P<open>['"] | /\* | \$(?:[A-Za-z_]\w*)?\$)
    | [\w$]+ | .
    """,
    re.VERBOSE | re.DOTALL,
)

#: Words that are commands without a mark before them.
BARE_COMMANDS = frozenset({"exit", "quit", "help", "?"})


def split(text: str) -> tuple[list[str], str]:
    """The finished statements without their semicolons, and the rest; comments before them are left out."""
    statements: list[str] = []
    begin, position, has_code = 0, 0, False
    while position < len(text):
        match = _PART.match(text, position)
        assert match is not None  # the last alternative matches anything
        if match["open"] is not None:
            return statements, text[begin:]
        if match["end"] is not None:
            if has_code:
                statements.append(text[begin:position].strip())
            begin, has_code = match.end(), False
        elif match["blank"] is None:
            has_code = True
        elif not has_code:
            begin = match.end()
        position = match.end()
    return statements, text[begin:] if has_code else ""


def command_of(text: str) -> list[str] | None:
    """The words of a command (`.tables`, `\\d jobs`, `exit`); None for SQL."""
    words = text.strip().rstrip(";").split()
    if not words or "\n" in text.strip():
        return None
    is_marked = words[0][0] in ".\\" and len(words[0]) > 1
    return words if is_marked or (len(words) == 1 and words[0].lower() in BARE_COMMANDS) else None


def is_finished(text: str) -> bool:
    """Whether Enter ends the input: nothing, a command, or statements that are all closed."""
    if not text.strip() or command_of(text) is not None:
        return True
    statements, rest = split(text)
    return bool(statements) and not rest.strip()


def inputs(lines: Iterable[str]) -> Iterator[str]:
    """Commands and statements of a script, as they are complete; the last statement may lack its semicolon."""
    pending = ""
    for line in lines:
        if not pending.strip() and command_of(line) is not None:
            yield line.strip()
            continue
        statements, pending = split(pending + line)
        yield from statements
    if pending.strip():
        yield pending.strip()
