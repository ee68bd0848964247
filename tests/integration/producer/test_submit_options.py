"""Options of `run` and `submit` as one types them: dry runs, skipped lines, names, the configuration file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.conftest import TOY_MODEL, Producer


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n{bad\n{"prompt": "\\u001b[2J"}\n')
    return path


def test_a_dry_run_shows_the_first_prompt_as_the_model_sees_it(
    producer: Producer, prompts: Path, tmp_path: Path
) -> None:
    options = ["--model", TOY_MODEL, "--dry-run", "--skip-invalid", "--max-new-tokens", 10]
    done = producer("run", prompts, *options, "--strategy", "greedy,sample", "--temperature", "0.5,1")
    assert "6 jobs from 2 lines" in done.stdout and ": 2 greedy, 4 sample" in done.stdout
    assert "grid: temperature 0.5, 1.0" in done.stdout
    assert "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n" in done.stdout
    assert "at most 60 new ones" in done.stdout
    assert "1 invalid lines would be left out" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_bad_lines_are_skipped_where_asked(
    producer: Producer, prompts: Path, sqlite_database: Engine, broker: str
) -> None:
    connection = ["--database", sqlite_database.url.render_as_string(), "--broker", broker, "--model", TOY_MODEL]
    done = producer("submit", prompts, *connection, exit_code=2)
    assert "prompts.jsonl:2: is not JSON" in done.stderr and "--skip-invalid submits the other 2 jobs" in done.stderr
    done = producer("submit", prompts, *connection, "--skip-invalid", "--name", "night")
    assert "1 invalid lines are left out; they are in" in done.stderr
    (bad,) = (prompts.parent / "prompts.jsonl.invalid.jsonl").read_text().splitlines()
    assert json.loads(bad)["text"] == "{bad"
    again = producer("submit", prompts, *connection, "--skip-invalid", "--name", "night")
    assert f"run {done.stdout.strip()}: 2 already there, 0 new" in again.stderr
    assert again.stdout == done.stdout


def test_the_configuration_file_gives_way_to_environment_and_flags(producer: Producer, tmp_path: Path) -> None:
    (tmp_path / "nocturne.toml").write_text(f'model = "{TOY_MODEL}"\nhome = "elsewhere"\n')

    def message_of(finding: str, *flags: str, **environment: str) -> str:
        found = json.loads(producer("doctor", "--json", *flags, **environment).stdout)
        return next(str(each["message"]) for each in found if each["part"] == finding)

    assert message_of("model") == str(TOY_MODEL)
    assert "elsewhere/nocturne.db" in message_of("database")
    assert "other/nocturne.db" in message_of("database", NOCTURNE_HOME="other")
    assert "third/nocturne.db" in message_of("database", "--home", "third", NOCTURNE_HOME="other")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("modell = 'x'", "nocturne.toml: modell is not a setting; did you mean model?"),
        ("model = ", "nocturne.toml is not TOML"),
        ("max_num_seqs = 'many'", "nocturne.toml: input should be a valid integer"),
    ],
)
def test_a_wrong_configuration_file(producer: Producer, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "nocturne.toml").write_text(content)
    assert message in producer("doctor", exit_code=2).stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--expires", "soon"], "--expires must be a duration such as 90s, 30m, 8h or 2d, got 'soon'"),
        (["--on-duplicate", "maybe"], "--on-duplicate must be one of skip, error, rerun, got 'maybe'"),
        (["--strategy", "gredy"], "did you mean greedy?"),
        (["--max-running", str(2**31)], "Invalid value for '--max-running'"),
        (["--input-format", "xml"], "--input-format must be one of jsonl"),
    ],
)
def test_wrong_options(producer: Producer, tmp_path: Path, options: list[str], message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}')
    assert message in producer("run", "a.jsonl", "--model", TOY_MODEL, *options, exit_code=2).stderr
    assert not (tmp_path / ".nocturne").exists()


def test_the_version(producer: Producer) -> None:
    assert producer("--version").stdout.startswith("nocturne 0.")


def test_a_submission_without_the_models_files_warns(producer: Producer, tmp_path: Path) -> None:
    """Its defaults are left out on demand; nobody but a worker can tell whether the prompts fit."""
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "x"}))
    command = ["submit", "prompts.jsonl", "--dry-run", "--ignore-model-defaults", "--model"]
    absent = producer(*command, "someone/absent")
    assert absent.stderr.startswith(
        "warning: the files of someone/absent are not at hand: its workers find out whether"
    )
    assert "not at hand" not in producer(*command, TOY_MODEL).stderr
