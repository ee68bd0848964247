"""The modules of the product and the imports between them, read from their syntax trees without running anything."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.support.processes import ROOT

PACKAGES = ("models", "migrations", "worker", "producer")


def module_name(path: Path) -> str:
    """The dotted name under which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def syntax_tree(path: Path) -> ast.Module:
    """The tree of a file; callers must not change it."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, inside functions and under TYPE_CHECKING too."""
    return set(_imported_modules(ast.walk(syntax_tree(path)), path))


def imports_on_loading(path: Path) -> set[str]:
    """The modules that a file imports when it is itself imported."""
    return set(_imported_modules(_executed_statements(syntax_tree(path).body), path))


def import_circles() -> list[str]:
    """One circle of imports, as the names along it; empty where there is none."""
    graph = {name: imports_of(path) & MODULES.keys() - {name} for name, path in MODULES.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def folder_circle() -> list[str]:
    """One circle of imports between folders of which none holds another, as the names along it."""
    graph: dict[str, set[str]] = {}
    for path in MODULES.values():
        here = _folder_of(path)
        there = {_folder_of(MODULES[each]) for each in imports_of(path) & MODULES.keys()}
        beside = {each for each in there if not each.startswith(here) and not here.startswith(each)}
        graph.setdefault(here, set()).update(beside)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def _folder_of(path: Path) -> str:
    return f"{path.parent.relative_to(ROOT).as_posix()}/"


def modules_that_reach(target: str, package: str) -> list[str]:
    """The modules of a package that load the target, directly or through other modules of the package."""
    graph = {
        name: imports_on_loading(path) & MODULES.keys()
        for name, path in MODULES.items()
        if name == package or name.startswith(f"{package}.")
    }
    return sorted(name for name in graph if name != target and target in _reachable(graph, name))


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph.get(waiting.pop(), set()) - reached:
            reached.add(name)
            waiting.append(name)
    return reached


def _executed_statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run on import: no bodies of functions, no TYPE_CHECKING blocks."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from _executed_statements(statement.orelse)
            continue
        for child in ast.iter_child_nodes(statement):
            if isinstance(child, ast.stmt):
                yield from _executed_statements([child])
            elif isinstance(child, ast.ExceptHandler | ast.match_case):
                yield from _executed_statements(child.body)


def _imported_modules(nodes: Iterable[ast.AST], path: Path) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{path} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield node.module if node.module in MODULES and whole not in MODULES else whole
