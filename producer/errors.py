"""What ends a command with a message for the person who typed it, and exit code 2."""

from __future__ import annotations


class UsageError(Exception):
    """Wrong use: the message says what was wrong, where, and how to mend it."""


class InvalidInput(UsageError):
    """The prompt file has errors; the message lists them line by line."""
