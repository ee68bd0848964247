"""Templates of prompts in Jinja2's sandbox, and the plain ones among them, which any process may render.

A plain template has neither loops nor arithmetic nor calls, so its work is bounded by its own length times that of its
row. Every other one is rendered in the process that the kernel bounds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

PLAIN_NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem, nodes.If,
    nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Test, nodes.Filter,
)  # fmt: skip

#: Filters and tests whose output is at most a few times as long as their input.
PLAIN_FILTERS = frozenset(
    {"capitalize", "d", "default", "first", "last", "length", "lower", "string", "title", "tojson", "trim", "upper"}
)
PLAIN_TESTS = frozenset({"boolean", "defined", "false", "mapping", "none", "number", "sequence", "string", "true",
                         "undefined"})  # fmt: skip

MAX_PLAIN_SOURCE = 10_000


class PrintsNull(Exception):
    """A template prints a null, which would stand in the prompt as the word None."""


def _checked_output(value: Any) -> Any:
    if value is None:
        raise PrintsNull
    return value


def environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True, finalize=_checked_output
    )


@lru_cache(maxsize=8)
def compiled(source: str) -> Template:
    return environment().from_string(source)


def undeclared_names(source: str) -> set[str]:
    """The names that a template takes from its row."""
    return meta.find_undeclared_variables(environment().parse(source))


def is_plain(source: str) -> bool:
    """Whether the template, which is parsed only, is a plain one. Raises `TemplateSyntaxError`."""
    parsed = environment().parse(source)  # compiling would compute its constants
    return len(source) <= MAX_PLAIN_SOURCE and all(map(_is_plain, [parsed, *parsed.find_all(nodes.Node)]))


def _is_plain(node: Any) -> bool:
    if not isinstance(node, PLAIN_NODES):
        return False
    if isinstance(node, nodes.Filter):
        return node.name in PLAIN_FILTERS and _has_plain_arguments(node)
    return not isinstance(node, nodes.Test) or node.name in PLAIN_TESTS


def _has_plain_arguments(node: nodes.Filter) -> bool:
    if node.kwargs or node.dyn_args or node.dyn_kwargs:
        return False
    if node.name == "tojson":  # JSON of JSON doubles its length with each level
        return not node.args and not isinstance(node.node, nodes.Filter)
    return not node.args or node.name in ("d", "default") and all(isinstance(each, nodes.Const) for each in node.args)
