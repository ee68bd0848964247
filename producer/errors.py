"""The producer's exceptions.

`UsageError` ends a command with its message on stderr and exit code 2. `LineProblem` is about one line of a file and
ends nothing: lines are counted and reported together.
"""

from __future__ import annotations


class UsageError(Exception):
    """Wrong use: the message says what was wrong, where, and how to fix it."""


class InvalidInput(UsageError):
    """The prompt file has errors; the message lists them line by line."""


class LineProblem(Exception):
    """A fault of one line; `field` is empty for a fault of the line as a whole."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}".strip())
        self.field, self.problem = field, problem
