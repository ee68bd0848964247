"""`--template`: a prompt made of a row's columns, by Jinja2 in its sandbox.

`{text}` is short for `{{ text }}`; a template that has `{{` or `{%` is compiled as it is. `row` is the whole row, for
columns whose names are not identifiers: `{{ row["the text"] }}`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from producer.errors import LineProblem, UsageError

SHORT_FORM = re.compile(r"\{([A-Za-z_]\w*)\}")


class _PrintsNull(Exception):
    """A template prints a null, which would stand in the prompt as the word None."""


def _checked_output(value: Any) -> Any:
    if value is None:
        raise _PrintsNull
    return value


class PromptTemplate:
    """A compiled template. Raises `UsageError` for a source that does not compile."""

    def __init__(self, source: str) -> None:
        from jinja2 import StrictUndefined, TemplateSyntaxError, meta
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if "{{" not in source and "{%" not in source:
            source = SHORT_FORM.sub(r"{{ \1 }}", source)
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, keep_trailing_newline=True, finalize=_checked_output
        )
        try:
            names = meta.find_undeclared_variables(environment.parse(source))
            self.names, self.uses_row = names - {"row"}, "row" in names
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise UsageError(f"--template is not a Jinja2 template: {error.message} in line {error.lineno}") from error

    def check_columns(self, columns: Collection[str]) -> None:
        """Raises `UsageError` for a name that is not a column."""
        for name in sorted(self.names):
            if name not in columns:
                raise UsageError(f"--template names {name!r}, and the columns are {', '.join(columns)}")

    def render(self, row: dict[str, Any], *, is_table: bool = False) -> str:
        """The prompt of a row, in a table one with null in each cell that it lacks. Raises `LineProblem`."""
        from jinja2 import TemplateError

        cells = dict.fromkeys(self.names) if is_table else {}
        try:
            return self._template.render({**cells, **row, "row": row})
        except _PrintsNull as error:
            absent = sorted(name for name in self.names if (cells | row).get(name) is None)
            raise LineProblem(
                ", ".join(absent) or "a value", "is null, and --template prints it; write {% if … %} around it"
            ) from error
        except (TemplateError, TypeError, ValueError, ArithmeticError, MemoryError, RecursionError) as error:
            raise LineProblem("", f"does not go with --template: {error}") from error
