r"""Backslash escapes: text is taken as it stands, with a warning where a backslash and an n may mean a line break.

One rule for --stop, --template, cells of tables and lines of text. JSON and Jinja's strings have escapes of their own,
and the shell has $'\n'. Quotes that a table's reader left in a text are warned about too, and so are texts that another
format or another encoding reads otherwise.
"""

from __future__ import annotations

import re

#: In a short text that is written by hand.
ESCAPE = re.compile(r"\\[nrt]")

#: In a prompt: not the beginning of a word, as in LaTeX and in paths.
ESCAPE_IN_TEXT = re.compile(r"\\[nrt](?![a-z])")

#: A line of a text file that is one of another format.
JSON_LINE = re.compile(r'\s*\{\s*"(prompt|messages|custom_id|text|instruction|conversations)"\s*:')
SEPARATOR = re.compile(r"[,;\t|]")
SOURCES = frozenset({"prompt", "messages"})

#: Characters that no text has: files of cp1252 read as latin-1 have those of the second range, ISO-2022's have U+001B.
CONTROL = re.compile("[\x01-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")

JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)

AS_IT_STANDS = "a backslash and a letter, taken as it stands"


def option_remarks(template: str | None, stop: list[str]) -> dict[str, str]:
    """Warnings about the command's own texts, by option."""
    remarks = {}
    if template is not None and (match := ESCAPE.search(JINJA.sub("", template))):
        remarks["--template"] = f"has {match[0]}, {AS_IT_STANDS}; for a line break write --template $'…\\n…'"
    if match := next(filter(None, map(ESCAPE.search, stop)), None):
        remarks["--stop"] = f"has {match[0]}, {AS_IT_STANDS}; for a line break write --stop $'\\n'"
    return remarks


def line_remarks(prompt: str | None, stop: object, *, is_table: bool, is_tsv: bool = False) -> dict[str, str]:
    """Warnings about the texts of a line, by field."""
    remarks = {}
    stops = [stop] if isinstance(stop, str) else stop if isinstance(stop, list | tuple) else []
    if match := next((found for text in stops if isinstance(text, str) and (found := ESCAPE.search(text))), None):
        remarks["stop"] = f"has {match[0]}, {AS_IT_STANDS}; {_way_out(is_table)}"
    if is_table and prompt is not None and "\n" not in prompt and (match := ESCAPE_IN_TEXT.search(prompt)):
        remarks["prompt"] = f"has {match[0]}, {AS_IT_STANDS}; {_way_out(is_table)}"
    if is_table and prompt is not None and (_has_csv_quotes(prompt) or is_tsv and _opens_quote(prompt)):
        remarks["prompt"] = (
            "has quotes that are a part of it: TSV and text have none (--input-format csv reads a table with them), "
            "and CSV has them right behind the separator"
        )
    return remarks


def remark_of_format(prompt: str, format: str, encoding: str) -> str | None:
    """The warning about a prompt that its file's format or encoding may have read wrongly."""
    if format == "text" and JSON_LINE.match(prompt):
        return "looks like a JSON object, and is taken as text; --input-format jsonl reads its fields"
    if format == "text" and SOURCES & {cell.strip(' "') for cell in SEPARATOR.split(prompt)} and len(prompt) < 500:
        return "looks like the header of a table, and is taken as text; --input-format csv or tsv reads the table"
    if (utf8 := _utf8(prompt, encoding)) is not None:
        return f"is UTF-8 too ({utf8!r:.40}), and is read as {encoding}; leave --encoding out if it looks wrong"
    if format not in ("jsonl", "parquet") and (match := CONTROL.search(prompt)):
        way_out = "give --encoding cp1252" if ord(match[0]) > 127 else "name the file's encoding with --encoding"
        return f"has the control character U+{ord(match[0]):04X}; {way_out} if text belongs there"
    return None


def _utf8(text: str, encoding: str) -> str | None:
    """The text as UTF-8, where its bytes in another encoding are that too."""
    if text.isascii() or encoding.lower().startswith("utf"):
        return None
    try:
        return text.encode(encoding).decode()
    except UnicodeError:
        return None


def _has_csv_quotes(text: str) -> bool:
    """Whether CSV's own quotes stand around a text: with doubled ones inside, or behind a space."""
    inner = text.strip()
    if len(inner) < 2 or inner[0] != '"' or inner[-1] != '"':
        return False
    inner = inner[1:-1]
    return text[0] != '"' if '"' not in inner else '""' in inner and '"' not in inner.replace('""', "")


def _opens_quote(text: str) -> bool:
    """Whether a quote begins the text and does not end in it, as the first line of a quoted cell of several."""
    return text.startswith('"') and text.count('"') % 2 == 1


def _way_out(is_table: bool) -> str:
    if is_table:
        return "for a line break put one into the quoted cell, or use JSON lines"
    return "for a line break write \\n in JSON, once"
