"""Model folders of strangers: one line, exit code 2, no traceback, no hang, flat memory; nothing of theirs is run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models.checkpoint.folder import check_folder
from models.checkpoint.hub import model_folder
from models.checkpoint.small_files import CheckpointProblem
from models.checkpoint.tokenizer_files import normalizer_expansion
from producer.model_files.folder import ModelFiles
from producer.prompts.prompt_check import PromptCheck
from tests.nights.files.hostile_models import HOSTILE, REGEX_BOMB, TOY_MODEL, WEIGHTS, link, make, replacing
from tests.support.processes import HANG_SECONDS, clean_environment
from worker.engine.model_loader import load_model
from worker.engine.request import ModelUnavailable

EXTRA_BYTES = 600 * 2**20  # of the process that tries them all; a bomb takes what there is


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The outcomes of all folders in one process: exit code, messages, memory."""
    here = tmp_path_factory.mktemp("hostile")
    (here / "prompts.jsonl").write_text('{"prompt": "Hello"}\n')
    folders = [TOY_MODEL, *(make(attack, here / name) for name, (attack, _) in HOSTILE.items())]
    done = subprocess.run(
        [sys.executable, "-m", "tests.nights.files.hostile_models", str(here / "prompts.jsonl"), *map(str, folders)],
        capture_output=True, text=True, cwd=here, env=clean_environment(), timeout=HANG_SECONDS, check=True,
    )  # fmt: skip
    results = [json.loads(line) for line in done.stdout.splitlines()]
    messages = done.stderr.split("END ")
    for result, message in zip(results, messages, strict=False):
        result["messages"] = message.split("\n", 1)[1] if result is not results[0] else message
    assert not (here / "executed").exists()
    return {Path(result["folder"]).name: result for result in results}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_folder_is_refused_in_one_line(attack: str, tried: dict[str, dict[str, Any]]) -> None:
    result = tried[attack]
    assert result["code"] == 2, result
    (line,) = result["messages"].splitlines()
    assert line.startswith("error: ") and line.isprintable() and len(line) < 2500
    assert HOSTILE[attack][1] in line


def test_the_folder_that_they_are_made_of_is_taken(tried: dict[str, dict[str, Any]]) -> None:
    assert tried[TOY_MODEL.name]["code"] == 0, tried[TOY_MODEL.name]


def test_memory_stays_flat(tried: dict[str, dict[str, Any]]) -> None:
    before = tried[TOY_MODEL.name]["peak"]
    assert max(result["peak"] for result in tried.values()) < before + EXTRA_BYTES


@pytest.mark.parametrize("attack", ["pickle", "weights-pipe", "template-link", "absent-special-token", "empty-pattern"])
def test_the_engine_refuses_them_too(attack: str, tmp_path: Path) -> None:
    folder = make(HOSTILE[attack][0], tmp_path / "model")
    with pytest.raises(ModelUnavailable) as refused:
        load_model(str(folder), "cpu")
    assert str(refused.value).isprintable()


def test_a_pattern_that_backtracks_fails_the_prompt_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = ModelFiles("model", make(REGEX_BOMB, tmp_path / "model"))
    check = PromptCheck(files, context_window=16)
    with pytest.raises(Exception, match="prompt cannot be tokenized by model: .*retry-limit-in-match"):
        check._check("a" * 40, None, None)  # type: ignore[arg-type]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("rules", "expansion"),
    [
        ([], 1),
        ([replacing({"String": " "}, "▁")], 1),
        ([replacing({"String": str(digit)}, "<byte>") for digit in range(10)], 6),
        ([replacing({"Regex": " {2,}"}, " "), replacing({"String": "``"}, '"')], 1),
        ([replacing({"String": "x"}, "")], 1),
    ],
)
def test_usual_normalizers_do_not_grow_texts(rules: list[dict[str, Any]], expansion: int) -> None:
    nested = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Sequence", "normalizers": rules}]}
    assert normalizer_expansion(nested) == expansion


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot of today's cache, and a folder of an older download beside it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    blobs = tmp_path / "cache" / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for folder in (blobs.parent / "snapshots" / "abc", tmp_path / "local"):
        folder.mkdir(parents=True)
        for number, path in enumerate(sorted(TOY_MODEL.iterdir())):
            blob = blobs / f"{number:064x}"
            blob.write_bytes(path.read_bytes())
            (folder / path.name).symlink_to(blob)
        check_folder(folder)
    (tmp_path / "linked").symlink_to(tmp_path / "local")
    check_folder(model_folder(str(tmp_path / "linked")))
    link("generation_config.json", str(tmp_path / "cache" / "other"))(tmp_path / "local")
    (tmp_path / "cache" / "other").write_text("{}")
    with pytest.raises(CheckpointProblem, match="is a link out of the model's folder"):
        check_folder(tmp_path / "local")


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    def rename(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "weights")
        link(WEIGHTS, "weights")(folder)

    check_folder(make(rename, tmp_path / "model"))
