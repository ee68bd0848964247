"""Each folder keeps its sentence: the direction of imports, no circles, and nothing heavy behind `producer --help`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.house import figures
from tests.support.house.import_graph import MODULES, PACKAGES, folder_circle, import_circles, imports_of, syntax_tree
from tests.support.processes import ROOT, clean_environment

ALLOWED = {
    "models": {"models"},
    "migrations": {"migrations", "models"},
    "worker": {"worker", "models", "migrations"},
    "producer": {"producer", "models", "migrations", "worker.celery"},
}

#: Folder -> modules and packages that nothing in it imports, inside functions included.
FORBIDDEN = {
    "models": {"torch", "transformers", "celery"},
    "producer": {"torch", "transformers"},
    "producer/prompts": {"sqlalchemy", "models.database", "models.schema", "migrations", "producer.runs"},
    "producer/model_files": {"sqlalchemy", "models.database", "models.schema", "migrations", "producer.runs"},
    "producer/results": {
        "producer.runs",
        "models.database.bulk_insert",
        "models.database.outbox",
        "models.database.run_counts",
        *(f"sqlalchemy.{verb}" for verb in ("insert", "update", "delete")),
    },
    "worker/engine": {"celery", "kombu", "redis", "sqlalchemy", "alembic", "multiprocessing", "models.database"},
    "worker/engine/scheduling": {"torch", "transformers", "worker.engine.model"},
    "worker/engine/model": {"worker.engine.scheduling", "worker.engine.sampling"},
}

#: The beginnings of SQL statements that change a database.
WRITING = re.compile(
    r"\s*((insert|replace|merge) into|update \w+ set|delete from|truncate|(create|alter|drop) (table|view|index))\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_in_the_allowed_direction(module: str) -> None:
    allowed = ALLOWED[module.split(".")[0]]
    for imported in imports_of(MODULES[module]):
        if imported.split(".")[0] in PACKAGES:
            assert any(imported == name or imported.startswith(f"{name}.") for name in allowed), imported


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_folder_imports_what_it_must_not_know(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for imported in imports_of(path):
            assert not any(f"{imported}.".startswith(f"{name}.") for name in FORBIDDEN[folder]), (path, imported)


@pytest.mark.parametrize("path", sorted((ROOT / "producer" / "results").rglob("*.py")), ids=lambda path: path.stem)
def test_results_never_write(path: Path) -> None:
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not WRITING.match(node.value), node.value
        elif isinstance(node, ast.Attribute):
            assert node.attr not in {"commit", "add_all", "insert", "delete"}, node.attr


@pytest.mark.parametrize("folder", figures.files_per_folder(*PACKAGES))
def test_a_folder_has_few_files_and_a_sentence(folder: str) -> None:
    assert figures.files_per_folder(*PACKAGES)[folder] <= figures.MAX_FILES_PER_FOLDER
    if any((ROOT / folder).glob("*.py")) and folder != "migrations/versions":
        sentence = ast.get_docstring(syntax_tree(ROOT / folder / "__init__.py"))
        assert sentence and sentence.splitlines()[0].endswith("."), folder


def test_modules_make_no_circle() -> None:
    assert import_circles() == []


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


@pytest.mark.parametrize(
    ("folder", "unwanted"),
    [("producer.prompts", {"sqlalchemy", "alembic", "torch"}), ("worker.engine.scheduling", {"torch", "transformers"})],
)
def test_loading_a_whole_folder_loads_nothing_that_it_must_not_know(folder: str, unwanted: set[str]) -> None:
    names = [name for name in MODULES if name.startswith(f"{folder}.")]
    assert names and not loaded_modules(f"import {', '.join(names)}") & unwanted


def test_the_worker_beside_the_engine_loads_no_torch() -> None:
    assert not loaded_modules("import worker.tasks, worker.cli") & {"torch", "transformers"}


def test_the_engine_loads_no_database_no_broker_and_no_settings() -> None:
    """A machine lent for its GPU may have torch, transformers and pydantic alone."""
    unwanted = {"sqlalchemy", "celery", "redis", "kombu", "pydantic_settings", "typer"}
    assert not loaded_modules("import worker.engine.engine, benchmarks.gpu.whole") & unwanted


def test_folders_side_by_side_make_no_circle() -> None:
    assert folder_circle() == []
