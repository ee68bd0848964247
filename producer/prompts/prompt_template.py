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


class PromptTemplate:
    """A compiled template. Raises `UsageError` for a source that does not compile."""

    def __init__(self, source: str) -> None:
        from jinja2 import StrictUndefined, TemplateSyntaxError, meta
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if "{{" not in source and "{%" not in source:
            source = SHORT_FORM.sub(r"{{ \1 }}", source)
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
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

    def render(self, row: dict[str, Any]) -> str:
        """The prompt of a row. Raises `LineProblem`."""
        from jinja2 import TemplateError

        try:
            return self._template.render({**row, "row": row})
        except (TemplateError, TypeError, ValueError, ArithmeticError, MemoryError, RecursionError) as error:
            raise LineProblem("", f"does not go with --template: {error}") from error
