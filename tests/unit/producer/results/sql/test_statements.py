"""Typed text as statements and commands, whatever semicolons its quotes and comments hold."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.results.sql.statements import command_of, inputs, is_finished, split


@pytest.mark.parametrize(
    ("text", "statements", "rest"),
    [
        ("select 1; select 2;", ["select 1", "select 2"], ""),
        ("select ';'; select 2", ["select ';'"], "select 2"),
        ("select 'it''s;'\n;", ["select 'it''s;'"], ""),
        ('select 1 as ";";', ['select 1 as ";"'], ""),
        ("select 1 -- ;\n;", ["select 1 -- ;"], ""),
        ("select /* ; */ 1;", ["select /* ; */ 1"], ""),
        ("select $$;$$; select $a$;$$;$a$;", ["select $$;$$", "select $a$;$$;$a$"], ""),
        (r"select E'\';'; select 1;", [r"select E'\';'", "select 1"], ""),
        ("; ;; -- nothing\n", [], ""),
        ("select 'open; ", [], "select 'open; "),
        ("select 1; /* open ;", ["select 1"], "/* open ;"),
        ("select $a$ open; $$", [], "select $a$ open; $$"),
        ("select 1 -- the end;", [], "select 1 -- the end;"),
    ],
)
def test_split(text: str, statements: list[str], rest: str) -> None:
    assert split(text) == (statements, rest)


PIECES = st.sampled_from([";", "'", '"', "--", "\n", "/*", "*/", "a", " ", "''", "select 1"])


@given(st.lists(PIECES, max_size=12).map("".join))
def test_a_statement_ends_where_sqlite_says(text: str) -> None:
    statements, rest = split(text)
    if statements and not rest.strip():
        assert sqlite3.complete_statement(text)
    for statement in statements:
        assert sqlite3.complete_statement(statement + "\n;")
    assert all(each in text for each in [*statements, rest])


@given(st.lists(PIECES, max_size=12).map("".join))
def test_a_script_is_the_same_line_by_line(text: str) -> None:
    statements, rest = split(text)
    assert list(inputs(text.splitlines(keepends=True))) == [*statements, *([rest.strip()] if rest.strip() else [])]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (".tables", [".tables"]), ("\\d jobs", ["\\d", "jobs"]), ("exit", ["exit"]), ("QUIT;", ["QUIT"]), ("?", ["?"]),
        ("\\x\n", ["\\x"]), ("select 1", None), ("exit now", None), (".", None), ("", None), (".a\n.b", None),
    ],
)  # fmt: skip
def test_commands(text: str, words: list[str] | None) -> None:
    assert command_of(text) == words


def test_enter_ends_a_finished_input_alone() -> None:
    assert all(map(is_finished, ["", "  ", "select 1;", ".tables", "exit", "select 1; -- done"]))
    assert not any(map(is_finished, ["select 1", "select ';", "select 1; select", "sel\n.tables"]))


def test_commands_and_statements_of_a_script() -> None:
    script = [".mode csv\n", "select 1;select\n", "2;\n", "exit\n", "select\n", ".5;\n"]
    assert list(inputs(script)) == [".mode csv", "select 1", "select\n2", "exit", "select\n.5"]
