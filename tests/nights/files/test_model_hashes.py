"""The environment of a result says which model answered: each file that decides answers is in a hash."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from tests.support.model_folders import edit_json, make_small_model
from worker.engine.model_loader import load_model
from worker.engine.provenance import describe_environment


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_small_model(tmp_path_factory.mktemp("models") / "whole", shard_size="20KB")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture(scope="module")
def environment(whole: Path) -> dict[str, Any]:
    return environment_of(whole)


def environment_of(folder: Path) -> dict[str, Any]:
    return describe_environment(load_model(str(folder), "cpu", "float32"))


def append(name: str, text: str = "\n") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text() + text)


def change_weights(folder: Path) -> None:
    shard = sorted(folder.glob("model-*.safetensors"))[-1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)


DECIDING: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (change_weights, "weights_hash"),
    "config": (lambda folder: edit_json(folder / "config.json", rms_norm_eps=1e-3), "tokenizer_hash"),
    "generation-config": (
        lambda folder: edit_json(folder / "generation_config.json", repetition_penalty=1.5), "tokenizer_hash",
    ),
    "tokenizer": (append("tokenizer.json"), "tokenizer_hash"),
    "tokenizer-config": (lambda folder: edit_json(folder / "tokenizer_config.json", eos_token="."), "tokenizer_hash"),
    "chat-template": (append("chat_template.jinja", "!"), "tokenizer_hash"),
    "second-template": (append("additional_chat_templates/tool_use.jinja", "!"), "tokenizer_hash"),
    "added-tokens": (lambda folder: (folder / "added_tokens.json").write_text("{}"), "tokenizer_hash"),
}  # fmt: skip


@pytest.mark.parametrize("file", DECIDING)
def test_a_change_of_a_deciding_file_changes_a_hash(
    file: str, whole: Path, environment: dict[str, Any], tmp_path: Path
) -> None:
    change, column = DECIDING[file]
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    change(folder)
    changed = environment_of(folder)
    for name in ("weights_hash", "tokenizer_hash"):
        assert (changed[name] != environment[name]) == (name == column)
    if column == "tokenizer_hash":
        files, before = changed["versions"]["files"], environment["versions"]["files"]
        assert len({name for name in files if files[name] != before.get(name)}) == 1


def test_what_is_not_loaded_changes_nothing(whole: Path, environment: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    for name in ("README.md", "pytorch_model.bin", "other.safetensors", "tokenizer.old"):
        (folder / name).write_text("x")
    assert environment_of(folder) == environment | {"model": str(folder)}


def test_the_hash_of_weights_is_that_of_0_1(tmp_path: Path) -> None:
    folder = make_small_model(tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    environment = environment_of(folder)
    assert environment["weights_hash"] == blake2b(b"model.safetensors" + weights, digest_size=16).hexdigest()
    json.dumps(environment)
