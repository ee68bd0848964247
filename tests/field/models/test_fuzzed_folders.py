"""Small model folders damaged at random: refused in one line or loaded, by producer and engine; never a traceback."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.params import GenerationParams
from producer.errors import UsageError
from producer.runs.model_check import check_model
from tests.support.model_folders import LFS_POINTER, make_small_model
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.model_loader import load_model
from worker.engine.request import EngineError, Request

NUM_FOLDERS, NUM_FOLDERS_OF_THE_LONG_TEST = 40, 200
WEIGHTS = "model.safetensors"
JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
VALUES: tuple[Any, ...] = (
    ..., None, True, False, 0, -1, 1, 2, 3, 7, 10**9, 10**18, -(10**12), 0.5, 1e300, float("nan"), "", "x", "gelu",
    "float32", [], [1], [[]], {}, {"a": 1}, "\0", "é" * 50,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_model(tmp_path_factory.mktemp("fuzz") / "whole")


def pick_file(rng: random.Random, folder: Path) -> Path:
    return rng.choice(sorted(path for path in folder.iterdir() if path.is_file()))


def truncate(rng: random.Random, folder: Path) -> str:
    path = pick_file(rng, folder)
    os.truncate(path, rng.choice([0, 1, 7, 8, 9, rng.randrange(path.stat().st_size + 1)]))
    return f"cut {path.name}"


def flip(rng: random.Random, folder: Path) -> str:
    """Changes bytes; of the weights those of the header, because every tensor is a tensor."""
    path = pick_file(rng, folder)
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 3, 30])):
        if content:
            content[rng.randrange(min(len(content), 4000))] = rng.randrange(256)
    path.write_bytes(content)
    return f"flip {path.name}"


def swap(rng: random.Random, folder: Path) -> str:
    first, second = pick_file(rng, folder), pick_file(rng, folder)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    return f"swap {first.name} {second.name}"


def delete(rng: random.Random, folder: Path) -> str:
    path = pick_file(rng, folder)
    path.unlink()
    return f"delete {path.name}"


def point(rng: random.Random, folder: Path) -> str:
    path = pick_file(rng, folder)
    path.write_text(LFS_POINTER)
    return f"pointer {path.name}"


def edit(rng: random.Random, folder: Path) -> str:
    """Sets a field of a JSON file, or of an object inside it."""
    path = folder / rng.choice(JSON_FILES[:1] * 6 + JSON_FILES)
    content = json.loads(path.read_text())
    place = content
    while isinstance(place, dict) and place and rng.random() < 0.3:
        inner = place.get(rng.choice(sorted(place)))
        if not isinstance(inner, dict) or not inner:
            break
        place = inner
    name, value = rng.choice(sorted(place) or ["a"]), rng.choice(VALUES)
    if value is ...:
        place.pop(name, None)
    else:
        place[name] = value
    path.write_text(json.dumps(content))
    return f"edit {path.name} {name}={value!r}"


def edit_tensors(rng: random.Random, folder: Path) -> str:
    """Changes an entry of the weights' header."""
    path = folder / WEIGHTS
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    name = rng.choice(sorted(header))
    field = rng.choice(["dtype", "shape", "data_offsets", "name"])
    if field == "name":
        header[name + "x"] = header.pop(name)
    elif isinstance(header[name], dict):
        header[name][field] = rng.choice([*VALUES[1:], [16, 16], [1, 0], "F16", "I64", "F8_E4M3"])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return f"tensor {name} {field}"


DAMAGES: tuple[Callable[[random.Random, Path], str], ...] = (
    truncate, flip, swap, delete, point, edit, edit, edit, edit, edit_tensors,
)  # fmt: skip


def damage(seed: int, whole: Path, folder: Path) -> str:
    """A copy of the folder with one or two damages; they are the same for the same seed."""
    shutil.copytree(whole, folder)
    rng = random.Random(seed)
    try:
        return "; ".join(rng.choice(DAMAGES)(rng, folder) for _ in range(rng.choice([1, 1, 1, 2])))
    except (ValueError, OSError, KeyError, TypeError, struct.error):
        return "damaged once"  # the second damage found nothing to change


def examine(folder: Path) -> str:
    """Loads the folder and decodes with it, as far as that goes; one line from whoever refuses it."""
    try:
        check_model(str(folder))
        told = ""
    except UsageError as refused:
        told = str(refused)
    try:
        engine = Engine(load_model(str(folder), "cpu", "float32"), EngineConfig(kv_memory=0.001, max_num_seqs=2))
    except EngineError as refused:
        assert "\n" not in str(refused) and len(str(refused)) < 2000
        assert "\n" not in told
        return f"refused: {refused}"
    assert not told, f"the engine loads it, the producer says {told}"
    (output,) = engine.generate([Request(0, (3, 4, 5), GenerationParams(max_new_tokens=3))])
    return f"loaded: {output.error or output.completions[0].finish_reason}"


def try_folders(seeds: range, whole: Path, tmp_path: Path) -> None:
    found = {}
    for seed in seeds:
        folder = tmp_path / str(seed)
        done = damage(seed, whole, folder)
        try:
            found[seed] = f"{done}: {examine(folder)}"
        except Exception as error:
            raise AssertionError(f"seed {seed}: {done}") from error
        shutil.rmtree(folder)
    outcomes = "".join(found.values())
    assert "refused: " in outcomes and "loaded: " in outcomes


def test_folders_damaged_at_random(whole: Path, tmp_path: Path) -> None:
    try_folders(range(NUM_FOLDERS), whole, tmp_path)


@pytest.mark.long
def test_many_folders_damaged_at_random(whole: Path, tmp_path: Path) -> None:
    try_folders(range(NUM_FOLDERS, NUM_FOLDERS + NUM_FOLDERS_OF_THE_LONG_TEST), whole, tmp_path)
