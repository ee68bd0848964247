"""CSV and TSV files as records that always know their physical lines.

A parser of our own instead of `csv`: a record that is damaged gives back all lines but its first, so that a missing
quote costs one line. TSV has no quotes: a line is a row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from producer.errors import LineProblem, UsageError
from producer.prompts.readers.cells import ABSENT, cell_value
from producer.prompts.readers.record import (
    CHAT_FIELDS,
    MAX_LINE_BYTES,
    MAX_RAW_BYTES,
    PARAMETER_FIELDS,
    FileFacts,
    Record,
    check_number_of_columns,
    parsed,
)
from producer.prompts.readers.text_lines import MARK, SNIFFED_BYTES, TOO_LONG, line_end, open_text, shown, undecoded

DELIMITERS = (",", ";", "\t", "|")
SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n?")  # Excel's first line
QUOTED_PART = re.compile(r'"(?:[^"]|"")*"')


@dataclass(frozen=True)
class Dialect:
    """The separator and the quotes of cells."""

    delimiter: str
    is_quoted: bool = True
    has_backslashes: bool = False  # \" is a quote inside quotes, as MySQL and Spark write it

    @property
    def quoted_text(self) -> re.Pattern[str]:
        """Matches the text of a quoted cell as far as its line has it."""
        return _WITH_BACKSLASHES if self.has_backslashes else _WITH_DOUBLED_QUOTES

    def unquoted(self, text: str) -> str:
        if self.has_backslashes:
            return _ESCAPE.sub(lambda match: match[0][1], text)
        return text.replace('""', '"')


_WITH_DOUBLED_QUOTES = re.compile(r'(?:[^"]++|"")*+')
_WITH_BACKSLASHES = re.compile(r'(?:[^"\\]++|\\.|\\$|"")*+', re.DOTALL)
_ESCAPE = re.compile(r'\\["\\]|""')


@dataclass
class Lines:
    """Physical lines without their ends; lines may be given back and are read again."""

    file: TextIO
    number: int = 0  # of the line read last
    _returned: list[str] = field(default_factory=list)  # the next one last

    def next(self) -> str | None:
        """The next line, of a very long one its beginning; None at the end."""
        if self._returned:
            line = self._returned.pop()
        else:
            line = self.file.readline(MAX_LINE_BYTES + 1)
            rest = line
            while len(rest) > MAX_LINE_BYTES and not rest.endswith(("\n", "\r")):
                rest = self.file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return None
        self.number += 1
        return line

    def give_back(self, lines: list[str]) -> None:
        self._returned += reversed(lines)
        self.number -= len(lines)


def read_csv(path: Path, facts: FileFacts) -> Iterator[Record]:
    """The rows under the header, in the dialect that the header and the first rows show."""
    newline = line_end(path, facts.encoding)
    dialect = _dialect(path, facts.encoding, newline)
    yield from _rows(path, facts, dialect, newline)


def read_tsv(path: Path, facts: FileFacts) -> Iterator[Record]:
    """The rows under the header; quotes are text."""
    yield from _rows(path, facts, Dialect("\t", is_quoted=False), line_end(path, facts.encoding))


def _rows(path: Path, facts: FileFacts, dialect: Dialect, newline: str) -> Iterator[Record]:
    with open_text(path, facts.encoding, newline) as file:
        lines = Lines(file)
        header = _header(path, lines, dialect, facts)
        if header is None:
            return
        facts.check_columns(header)
        spelling: Any = {"wanted": facts.wanted, "has_decimal_commas": dialect.delimiter == ";"}
        while (line := lines.next()) is not None:
            if _without_end(line):
                number = lines.number
                cells, taken = _cells_or_problem(lines, line, dialect, len(header))
                cells = _checked_row(cells, header, taken)
                yield _row(number, cells, taken, partial(_named_cells, header, **spelling), facts)


def _row(
    number: int,
    cells: list[str] | LineProblem,
    taken: list[str],
    named_cells: Callable[[list[str]], dict[str, Any]],
    facts: FileFacts,
) -> Record:
    raw = "".join(taken)
    problem = cells if isinstance(cells, LineProblem) else undecoded(raw, facts.encoding)
    text = shown(_without_end(raw if problem is None or len(raw) <= MAX_LINE_BYTES else raw[:MAX_RAW_BYTES]))
    if problem is not None or isinstance(cells, LineProblem):
        return Record(number, text, {}, problem, len(taken))
    return parsed(number, text, partial(named_cells, cells), len(taken))


def _checked_row(cells: list[str] | LineProblem, header: list[str], taken: list[str]) -> list[str] | LineProblem:
    """The cells of a row of several columns, unless they say nothing: none has text, or each has its column's name."""
    if isinstance(cells, LineProblem) or len(header) < 2:
        return cells
    if cells == header:
        return LineProblem("", "repeats the header, as files that are put together do; leave it out")
    if not any(map(str.strip, cells)) and '"' not in taken[0]:
        return LineProblem("", "is a row without any text, as spreadsheets leave them behind a table; leave it out")
    return cells


def _header(path: Path, lines: Lines, dialect: Dialect, facts: FileFacts) -> list[str] | None:
    """The columns' names; None for an empty file. Raises `UsageError`."""
    line = _header_line(lines, has_separator_line=dialect.is_quoted)
    if line is None:
        return None
    number = lines.number
    cells, _ = _cells_or_problem(lines, line, dialect, None)
    if isinstance(cells, LineProblem):
        raise UsageError(f"{path}:{number}: {cells}")
    check_number_of_columns(f"{path}:{number}", len(cells), facts)
    names = [name for name in cells if name]
    if len(set(names)) < len(names) and (doubles := sorted(n for n, times in Counter(names).items() if times > 1)):
        raise UsageError(f"{path}:{number}: two columns are called {doubles[0]!r}; rename one of them")
    if len(cells) - len(names) > 1:
        return [name or f"column {index}" for index, name in enumerate(cells, 1)]
    return cells


def _cells_or_problem(
    lines: Lines, line: str, dialect: Dialect, width: int | None
) -> tuple[list[str] | LineProblem, list[str]]:
    """A row's cells, or what is wrong with it, and its physical lines; damage costs its first line alone."""
    taken = [line]
    try:
        cells = _cells(lines, taken, dialect, width)
        if width is not None and len(cells) != width:
            raise _wrong_width(len(cells), width)
        return cells, taken
    except LineProblem as problem:
        lines.give_back(taken[1:])
        return problem, taken[:1]


def _cells(lines: Lines, taken: list[str], dialect: Dialect, width: int | None) -> list[str]:
    """The cells of the row that begins with `taken`, to which it adds the lines it runs over. Raises `LineProblem`."""
    if len(taken[0]) > MAX_LINE_BYTES:
        raise LineProblem("", TOO_LONG)
    line, position = _without_end(taken[0]).removeprefix(MARK), 0  # files that are put together have marks inside
    cells: list[str] = []
    if not dialect.is_quoted or '"' not in line and "\r" not in line:
        if width is not None and (number := line.count(dialect.delimiter) + 1) != width:
            raise _wrong_width(number, width)  # before so many cells are made
        return line.split(dialect.delimiter)
    while True:
        if line.startswith('"', position):
            cell, line, position = _quoted_cell(lines, taken, line, position + 1, dialect, width, len(cells))
        else:
            end = line.find(dialect.delimiter, position)
            cell, position = line[position : end if end >= 0 else None], end if end >= 0 else len(line)
            if "\r" in cell:
                raise LineProblem("", "is not CSV: a carriage return outside of quotes; save it with one line end")
            if '"' in cell and len(taken) > 1:
                raise LineProblem("", "is not CSV: a quote is opened and closed in the middle of another line")
        cells.append(cell)
        if position >= len(line):
            return cells
        position += 1  # the delimiter


def _wrong_width(number: int, width: int) -> LineProblem:
    return LineProblem("", f"has {number} columns, and the header has {width}")


def _quoted_cell(
    lines: Lines, taken: list[str], line: str, position: int, dialect: Dialect, width: int | None, num_before: int
) -> tuple[str, str, int]:
    """A quoted cell, the line that it ends in and the position behind it. Raises `LineProblem`."""
    parts, size = [], sum(map(len, taken))
    while (end := dialect.quoted_text.match(line, position).end()) == len(line):  # type: ignore[union-attr]
        parts.append(line[position:] + taken[-1][len(_without_end(taken[-1])) :])
        following = lines.next()
        if following is None:
            raise LineProblem("", "is not CSV: unexpected end of data")
        taken.append(following)
        size += len(following)
        if size > MAX_LINE_BYTES or width is not None and num_before >= width:
            raise LineProblem("", "is not CSV: a quote is opened and not closed")
        line, position = _without_end(following), 0
    parts.append(line[position:end])
    if end + 1 < len(line) and line[end + 1] != dialect.delimiter:
        raise LineProblem("", f"is not CSV: {dialect.delimiter!r} expected after '\"' (character {end + 2})")
    return dialect.unquoted("".join(parts)), line, end + 1


def _without_end(line: str) -> str:
    if line.endswith("\r\n"):
        return line[:-2]
    return line[:-1] if line.endswith(("\n", "\r")) else line


def _header_line(lines: Lines, *, has_separator_line: bool = True) -> str | None:
    """The first line that is not blank and not Excel's line of the separator; None for a file without one."""
    while (line := lines.next()) is not None:
        if line.strip() and not (has_separator_line and SEPARATOR_LINE.fullmatch(line)):
            return line
    return None


def _dialect(path: Path, encoding: str, newline: str) -> Dialect:
    """The dialect by the header's delimiters, and with backslashes where a row of the beginning needs them."""
    with open_text(path, encoding, newline) as file:
        first = _header_line(Lines(file), has_separator_line=False) or ""
    if separator := SEPARATOR_LINE.fullmatch(first):
        delimiter = separator[1]
    else:
        bare = QUOTED_PART.sub("", first)
        delimiter = max(DELIMITERS, key=lambda character: (bare.count(character), -DELIMITERS.index(character)))
    plain = Dialect(delimiter)
    escaped = Dialect(delimiter, has_backslashes=True)
    return escaped if _needs_backslashes(path, encoding, newline, plain, escaped) else plain


def _needs_backslashes(path: Path, encoding: str, newline: str, plain: Dialect, escaped: Dialect) -> bool:
    """Whether a damaged row of the file's beginning is whole when a backslash escapes a quote."""
    num_read = 0
    with open_text(path, encoding, newline) as file:
        lines = Lines(file)
        if (header := _header_line(lines)) is None:
            return False
        names, _ = _cells_or_problem(lines, header, plain, None)
        width = None if isinstance(names, LineProblem) else len(names)
        while num_read < SNIFFED_BYTES and (line := lines.next()) is not None:
            cells, taken = _cells_or_problem(lines, line, plain, width)
            num_read += sum(map(len, taken))
            if isinstance(cells, LineProblem) and '\\"' in line:
                cells, taken = _cells_or_problem(lines, line, escaped, width)
                if not isinstance(cells, LineProblem):
                    return True
    return False


def _named_cells(
    header: list[str], row: list[str], wanted: frozenset[str] | None, *, has_decimal_commas: bool
) -> dict[str, Any]:
    """A row as fields. CSV knows text only: the cell of a parameter, a chat or its inputs spells a value."""
    fields: dict[str, Any] = {}
    for name, cell in zip(header, row, strict=True):
        if wanted is not None and name not in wanted:
            continue
        if name not in PARAMETER_FIELDS and name not in ("priority", "messages", *CHAT_FIELDS):
            if name != "custom_id" or cell:
                fields[name] = cell
        elif (value := cell_value(name, cell, has_decimal_commas=has_decimal_commas)) is not ABSENT:
            fields[name] = value
    return fields
