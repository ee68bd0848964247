"""The names that a statement of PostgreSQL may call: a lexer, so that strings and comments hide none and invent none.

A function is called as `name(…)`, and as `(…).name` too. Keywords, types and aliases are among the names; the server's
catalog says which of them are functions.
"""

from __future__ import annotations

import re

from producer.errors import UsageError

# The rules of PostgreSQL's own lexer, with standard_conforming_strings. What is ambiguous between its versions is read
# so that more of the statement is code, never less.
_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\n\f\v]+ | --[^\r\n]*)
    | (?P<comment>/\*)
    | (?P<escaped>[eE]'(?:[^'\\]|\\.|'')*')
    | (?P<unicode_name>[uU]&")
    | (?P<string>(?:[bBxXnN]|[uU]&)?'(?:[^']|'')*')
    | \$(?P<tag>(?:[A-Za-z_\x80-\U0010ffff][\w\x80-\U0010ffff]*)?)\$
    | "(?P<quoted>(?:[^"]|"")*)"
    | (?P<name>[A-Za-z_\x80-\U0010ffff][\w$\x80-\U0010ffff]*)
    | (?P<other>[0-9]+ | .)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_MARK = re.compile(r"/\*|\*/")
_QUOTES = frozenset("'\"")

MAX_NAME_BYTES = 63


def called_names(statement: str) -> set[str]:
    """Every name before a parenthesis or behind a dot, as the catalog spells it. Raises `UsageError`."""
    names: set[str] = set()
    name, is_behind_dot, was_dot, was_escaped = "", False, False, False
    for kind, text in _tokens(statement):
        if kind == "string" and was_escaped:
            raise UsageError("the database refuses the statement: E'…' is followed by another string; write one")
        if name and (is_behind_dot or text == "("):
            names.add(_cut(name))
        name = text if kind == "quoted" else _folded(text) if kind == "name" else ""
        is_behind_dot, was_dot, was_escaped = was_dot, text == ".", kind == "escaped"
    if name and is_behind_dot:
        names.add(_cut(name))
    return names


def _cut(name: str) -> str:
    return name.encode("utf-8", "surrogatepass")[:MAX_NAME_BYTES].decode("utf-8", "ignore")


def _folded(name: str) -> str:
    return "".join(character.lower() if character.isascii() else character for character in name)


def _tokens(statement: str) -> list[tuple[str, str]]:
    """The kind and the text of each token, without white space and comments."""
    tokens, position = [], 0
    while position < len(statement):
        match = _TOKEN.match(statement, position)
        assert match is not None  # `other` matches anything
        kind, position = match.lastgroup or "", match.end()
        if kind == "comment":
            position = _end_of_comment(statement, position)
        elif kind == "tag":
            position = _end_of_dollars(statement, match[0], position)
            tokens.append(("string", ""))
        elif kind == "unicode_name" or (kind == "other" and match[0] in _QUOTES):
            raise UsageError('the database refuses the statement: a quote is not closed, or a name is written as U&"…"')
        elif kind == "quoted":
            tokens.append((kind, match[kind].replace('""', '"')))
        elif kind != "space":
            tokens.append((kind, match[0]))
    return tokens


def _end_of_comment(statement: str, position: int) -> int:
    depth = 1
    while depth and (mark := _COMMENT_MARK.search(statement, position)):
        depth += 1 if mark[0] == "/*" else -1
        position = mark.end()
    return len(statement) if depth else position


def _end_of_dollars(statement: str, tag: str, position: int) -> int:
    end = statement.find(tag, position)
    return len(statement) if end < 0 else end + len(tag)
