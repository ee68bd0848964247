"""Who imports whom: the direction of DESIGN, no circles, and nothing heavy behind `producer --help`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.processes import ROOT, clean_environment

PACKAGES = ("models", "migrations", "worker", "producer")

ALLOWED = {
    "models": {"models"},
    "migrations": {"migrations", "models"},
    "worker": {"worker", "models", "migrations"},
    "producer": {"producer", "models", "migrations", "worker.celery"},
}

FORBIDDEN = {
    "producer": {"torch", "transformers"},
    "worker/engine": {"celery", "kombu", "redis", "sqlalchemy", "alembic"},
    "models": {"torch", "transformers", "celery"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_in_the_allowed_direction(module: str) -> None:
    allowed = ALLOWED[module.split(".")[0]]
    for imported in imports_of(MODULES[module]):
        if imported.split(".")[0] in PACKAGES:
            assert any(imported == name or imported.startswith(f"{name}.") for name in allowed), imported


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_part_imports_what_it_must_not_know(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        roots = {imported.split(".")[0] for imported in imports_of(path)}
        assert not roots & FORBIDDEN[folder], path


def test_modules_make_no_circle() -> None:
    graph = {name: set(imports_of(path)) & MODULES.keys() - {name} for name, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)  # raises CycleError


def loaded_modules(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after a statement."""
    program = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=clean_environment()
    )
    return set(done.stdout.split()[-1000:])


def test_help_loads_nothing_heavy() -> None:
    statement = (
        "import sys\nsys.argv = ['producer', '--help']\nfrom producer.cli import main\n"
        "try: main()\nexcept SystemExit: pass"
    )
    heavy = {"torch", "transformers", "sqlalchemy", "celery", "redis", "alembic", "pyarrow", "numpy"}
    assert not loaded_modules(statement) & heavy


def test_a_command_that_submits_loads_no_torch() -> None:
    loaded = loaded_modules("import producer.runs.lifecycle, producer.results.export, producer.runs.doctor")
    assert not loaded & {"torch", "transformers"}


def test_the_worker_beside_the_engine_loads_no_torch() -> None:
    assert not loaded_modules("import worker.tasks, worker.cli") & {"torch", "transformers"}


@pytest.mark.parametrize("module", ["worker.engine.engine", "benchmarks.gpu"])
def test_the_engine_loads_no_database_no_broker_and_no_settings(module: str) -> None:
    """A machine lent for its GPU may have torch, transformers and pydantic alone."""
    unwanted = {"sqlalchemy", "celery", "redis", "kombu", "pydantic_settings", "typer"}
    assert not loaded_modules(f"import {module}") & unwanted
