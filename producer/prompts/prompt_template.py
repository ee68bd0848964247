"""`--template`: a prompt made of a row's columns, by Jinja2 in its sandbox.

`{text}` is short for `{{ text }}`; a template that has `{{` or `{%` is compiled as it is. `row` is the whole row, for
columns whose names are not identifiers: `{{ row["the text"] }}`. A template with loops, arithmetic or calls is
rendered in a process that bounds its time and memory.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from producer.errors import LineProblem, UsageError
from producer.prompts.readers.record import shown_names

SHORT_FORM = re.compile(r"\{([A-Za-z_]\w*)\}")

#: Jinja's own parts, and names in braces as Python's formats have them, which are text to Jinja.
JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
LITERAL_NAME = re.compile(r"\{\s*([A-Za-z_]\w*)\s*(?:[:!][^{}]{0,20})?\}")

#: Lines whose template is stopped, each after seconds, before the file is given up.
MAX_EXCEEDED = 3


class PromptTemplate:
    """A template that compiles. Raises `UsageError` for one that does not."""

    def __init__(self, source: str) -> None:
        from jinja2 import TemplateSyntaxError

        from models.templates.prompts import is_plain

        if "{{" not in source and "{%" not in source:
            source = SHORT_FORM.sub(r"{{ \1 }}", source)
        self._source, self._num_exceeded = source, 0
        try:
            self._is_plain = is_plain(source)
            names = self._names()
        except TemplateSyntaxError as error:
            raise _not_a_template(error.message or "", error.lineno) from error
        except RecursionError as error:
            raise UsageError("--template is nested too deeply") from error
        except ValueError as error:  # a number of thousands of digits
            raise _not_a_template(str(error), None) from error
        self.names, self.uses_row = names - {"row"}, "row" in names
        self.literal_names = frozenset(LITERAL_NAME.findall(JINJA.sub("", source)))  # {name} that is printed as it is

    def _names(self) -> set[str]:
        from models.templates.process import TemplateExceeded, TemplateFailed, renderer_process
        from models.templates.prompts import compiled, undeclared_names

        if self._is_plain:
            compiled(self._source)
            return undeclared_names(self._source)
        try:
            return set(renderer_process.ask("names", source=self._source))
        except TemplateFailed as error:
            raise _not_a_template(str(error), error.line) from error
        except TemplateExceeded as error:
            raise UsageError(f"--template {error}") from error

    def check_columns(self, columns: Collection[str]) -> None:
        """Raises `UsageError` for a name that is not a column."""
        for name in sorted(self.names):
            if name not in columns:
                raise UsageError(f"--template names {name!r}, and the columns are {shown_names(list(columns))}")

    def render(self, row: dict[str, Any], *, is_table: bool = False) -> str:
        """The prompt of a row, in a table one with null in each cell that it lacks. Raises `LineProblem`."""
        cells = {**(dict.fromkeys(self.names) if is_table else {}), **row}
        return self._render_plain(cells, row) if self._is_plain else self._render_bounded(cells, row)

    def _null(self, cells: dict[str, Any]) -> LineProblem:
        absent = sorted(name for name in self.names if cells.get(name) is None)
        return LineProblem(
            ", ".join(absent) or "a value", "is null, and --template prints it; write {% if … %} around it"
        )

    def _render_plain(self, cells: dict[str, Any], row: dict[str, Any]) -> str:
        from jinja2 import TemplateError

        from models.templates.prompts import PrintsNull, compiled

        try:
            return compiled(self._source).render({**cells, "row": row})
        except PrintsNull as error:
            raise self._null(cells) from error
        except (TemplateError, TypeError, ValueError, ArithmeticError, MemoryError, RecursionError) as error:
            raise LineProblem("", f"does not go with --template: {error}") from error

    def _render_bounded(self, cells: dict[str, Any], row: dict[str, Any]) -> str:
        """Raises `UsageError` too, when the template was stopped in several lines."""
        from models.templates.process import TemplateExceeded, TemplateFailed, renderer_process

        try:
            return str(renderer_process.ask("prompt", source=self._source, row=row, cells=cells))
        except TemplateFailed as error:
            if error.kind == "PrintsNull":
                raise self._null(cells) from error
            raise LineProblem("", f"does not go with --template: {error}") from error
        except TemplateExceeded as error:
            self._num_exceeded += 1
            if self._num_exceeded >= MAX_EXCEEDED:
                raise UsageError(f"--template {error}, in {MAX_EXCEEDED} lines by now; it is given up") from error
            raise LineProblem("", f"--template {error}") from error


def _not_a_template(problem: str, line: int | None) -> UsageError:
    place = "" if line is None else f" in line {line}"
    return UsageError(f"--template is not a Jinja2 template: {problem}{place}")
