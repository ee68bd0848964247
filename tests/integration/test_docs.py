"""The documentation is true: its examples run, its commands and columns exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import typer
import yaml
from sqlalchemy import Engine, insert, inspect, text

from docs.help_pages import PAGE, page
from migrations.schema_state import check_schema
from migrations.upgrade import upgrade
from migrations.views import view_definitions
from models.database.connection import open_database
from models.params import GenerationParams
from models.schema.tables import Result, TokenTrace
from models.settings import Settings
from producer.cli import app as producer_app
from producer.prompts.lines import PromptLine
from producer.prompts.readers.record import PARAMETER_FIELDS
from tests.pins import supported_pythons
from tests.support.house.import_graph import PACKAGES
from tests.support.processes import ROOT, clean_environment
from tests.support.prompts import read_prompts
from tests.support.table_rows import insert_run
from worker.cli import app as worker_app

DOCS = [ROOT / "README.md", ROOT / "examples" / "tiny" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_help_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "stale; run: make docs"


def test_every_command_shows_an_example() -> None:
    for section in page().split("\n## ")[1:]:
        if "Commands" not in section:
            assert "Example:" in section, section.splitlines()[0]


@pytest.mark.parametrize("path", [path for path in DOCS if blocks_of(path, "python")], ids=lambda path: path.name)
def test_python_examples_run(path: Path) -> None:
    program = "\n".join(blocks_of(path, "python"))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=clean_environment()
    )
    assert done.returncode == 0, done.stderr
    assert "least certain token" in done.stdout


def command_lines() -> list[str]:
    """Every line of the documentation that begins with one of our commands, comments and prompts taken off."""
    found = []
    for path in DOCS:
        for line in path.read_text(encoding="utf-8").splitlines():
            match = re.match(r"(?: {4}|)(?:\$ )?((?:producer|worker) (?:[a-z]+ ?)+.*)", line)
            if match and path.name != "help.md":
                found.append(re.sub(r"\s{2,}#.*", "", match[1]))
    return found


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_of_the_documentation_is_understood(line: str) -> None:
    """Parsed as the shell and the command would, down to the last option; nothing is run."""
    program, *words = shlex.split(line.replace("…", "x"))
    command = typer.main.get_command({"producer": producer_app, "worker": worker_app}[program])
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
    assert not hasattr(command, "commands"), line
    command.make_context(program, words)


def test_sql_examples_run(sqlite_database: Engine) -> None:
    statements = [s for block in blocks_of(ROOT / "docs" / "sql.md", "sql") for s in block.split(";") if s.strip()]
    assert len(statements) >= 3
    with sqlite_database.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


def test_partitions_of_traces_keep_views_cascades_and_every_row(postgres_url: str) -> None:
    (recipe,) = blocks_of(ROOT / "docs" / "scaling.md", "sql")
    database = open_database(postgres_url)
    upgrade(database)
    (job_id,) = insert_run(database, 1)
    with database.begin() as connection:
        connection.exec_driver_sql(recipe)
        for index, result_id in enumerate((1, 10_000_000, 30_000_000)):
            result = {
                "id": result_id, "job_id": job_id, "sample_index": index, "text": "a", "finish_reason": "eos",
                "prompt_tokens": 1, "completion_tokens": 1, "cumulative_logprob": -1.0, "queued_seconds": 0.0,
                "prefill_seconds": 0.0, "decode_seconds": 0.0,
            }  # fmt: skip
            token = {"token_id": 7, "token": "a", "logprob": -1.0}
            trace = token | {"result_id": result_id, "position": 0, "sampling_logprob": -1.0, "entropy": 1.0, "rank": 1}
            connection.execute(insert(Result).values(result))
            connection.execute(insert(TokenTrace).values(trace | {"kept": 1, "top_logprobs": [token]}))
    check_schema(database)
    with database.begin() as connection:
        for view in ("job_tokens", "token_alternatives"):
            found = connection.execute(text(f"SELECT result_id FROM {view} ORDER BY 1")).scalars().all()
            assert found == [1, 10_000_000, 30_000_000], view
        connection.execute(text("DELETE FROM results"))
        assert connection.execute(text("SELECT count(*) FROM token_traces")).scalar_one() == 0
    database.dispose()


def test_every_column_of_the_views_is_documented(sqlite_database: Engine) -> None:
    page_text = (ROOT / "docs" / "sql.md").read_text()
    for view in view_definitions("sqlite"):
        section = page_text.split(f"### `{view}`")[1].split("\n##")[0]
        named = set(re.findall(r"`(\w+)`", section))
        for column in inspect(sqlite_database).get_columns(view):
            assert column["name"] in named, f"{view}.{column['name']}"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_the_readme_names_every_parameter_that_a_line_gives() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in PARAMETER_FIELDS:
        assert f"`{name}`" in readme or name == "strategy", name


def test_the_readmes_prompt_lines_are_valid(tmp_path: Path) -> None:
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines() if line.startswith('    {"')]
    assert len(lines) >= 3
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines))
    for _, line in read_prompts(path):
        assert isinstance(line, PromptLine)
        GenerationParams.model_validate(line.params)


@pytest.mark.parametrize(
    ("file", "schema"),
    [("docker-compose.yml", "vendor.compose-spec"), (".github/workflows/test.yml", "vendor.github-workflows")],
)
def test_a_file_follows_its_schema(file: str, schema: str) -> None:
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    done = subprocess.run([*checker, file], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_public_ci_tests_every_python_that_the_project_names() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    pythons = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert pythons == supported_pythons() and pythons[0] == "3.11"
    commands = {name: [step.get("run") for step in job["steps"]] for name, job in workflow["jobs"].items()}
    assert "make test" in commands["test"] and "python -m tests.pins" in commands["pins"]
    assert "make lint" in commands["lint"]
    assert any("pip-audit" in (command or "") for command in commands["audit"])


def test_the_image_is_built_from_everything_that_the_package_is() -> None:
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    copied_names = {name for line in copied for name in line.split()}
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", *PACKAGES} <= copied_names


def test_the_compose_file_names_settings_that_exist() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert {"redis", "postgres", "migrate", "producer", "worker-cpu", "worker-gpu"} <= set(compose["services"])
    profiles = {profile for service in compose["services"].values() for profile in service.get("profiles", [])}
    assert profiles == {"cpu", "gpu", "tools", "monitoring"}
    worker, gpu_worker = compose["services"]["worker-cpu"], compose["services"]["worker-gpu"]
    assert "/cu" in gpu_worker["build"]["args"]["TORCH_INDEX"] and gpu_worker["image"] != worker["image"]
    for name in ("redis", "postgres"):
        assert "healthcheck" in compose["services"][name] and compose["services"][name]["volumes"]
    for name, service in compose["services"].items():
        for variable in service.get("environment", {}):
            if variable.startswith("NOCTURNE_"):
                setting = variable.removeprefix("NOCTURNE_").removesuffix("_FILE").lower()
                assert setting in Settings.model_fields, (name, variable)
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), (name, port)  # nothing listens outside


def test_the_environment_example_has_what_compose_asks_for() -> None:
    asked = set(re.findall(r"(?<!\$)\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    given = {line.split("=")[0] for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line}
    assert asked == given


def test_versions_are_pinned_and_torch_is_the_one_that_is_installed_first() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    assert pins["torch"] == "2.13.0"
    project = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r'^ {4}"([a-z0-9_\-]+)', project, flags=re.MULTILINE)
    assert len(wanted) > 10
    lowered = {name.lower() for name in pins}
    assert not [name for name in wanted if name not in lowered]


def exit_code_of_fork(function: Callable[[], object]) -> int:
    """Runs a function in a copy of this process, which has imported torch, and leaves this one as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads, and its copy does little
        pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_every_benchmark_can_be_imported_and_is_named_where_its_numbers_are() -> None:
    paths = [path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "benchmarks").rglob("*.py"))]
    # The scripts of peers/ import what only the peers' own environments have.
    names = [".".join(path.parts) for path in paths if path.name != "__init__" and "peers" not in path.parts]
    assert exit_code_of_fork(lambda: [import_module(name) for name in names]) == 0
    documented = "".join(path.read_text(encoding="utf-8") for path in DOCS)
    without_numbers = {"benchmarks.compare", "benchmarks.storage.databases"}
    commands = {name.removesuffix(".__main__") for name in names if name.endswith(".__main__")}  # of their whole folder
    measuring = {next((each for each in commands if name.startswith(f"{each}.")), name) for name in names}
    measuring = {name for name in measuring if ".support." not in name and name not in without_numbers}
    assert not [name for name in measuring if name not in documented]


def test_the_study_file_holds_the_two_prompts() -> None:
    lines = [json.loads(line) for line in (ROOT / "examples" / "study.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["hedgehog", "transfer"]
    assert all(line["prompt"].endswith("<|im_start|>assistant\n") for line in lines)
