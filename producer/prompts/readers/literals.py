"""Values that a cell or a field spells as text: JSON, or the literals that Python and pandas print."""

from __future__ import annotations

import ast
import io
import json
import tokenize
from itertools import pairwise
from typing import Any

from producer.prompts.readers.record import unique_fields


def literal(text: str) -> Any:
    """The value, as JSON has it. Raises `ValueError` for other text, `LineProblem` for an object with a name twice."""
    try:
        return json.loads(text, object_pairs_hook=unique_fields)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except ValueError:
        return _python_literal(text.strip())


def has_neighboring_strings(text: str) -> bool:
    """Whether Python would join two strings of a list: numpy prints lists without commas."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):
        return False
    kinds = [token.type for token in tokens if token.type != tokenize.NL]
    return (tokenize.STRING, tokenize.STRING) in pairwise(kinds)


def _python_literal(text: str) -> Any:
    try:
        return json.loads(json.dumps(ast.literal_eval(text)))  # tuples become lists, and keys strings
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("is neither JSON nor a literal of Python") from error
