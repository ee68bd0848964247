"""The files of a model that decide its answers, and their hashes: which model has answered.

Two folders that differ in any of them are two models: weights, tokenizer, chat templates, configurations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from models.checkpoint.config import QUANTIZATION_FILES
from models.checkpoint.small_files import CheckpointProblem, is_file, open_file, read_json_object
from models.checkpoint.tokenizer_files import CONFIGS, FAST, MODELS, VOCABULARIES
from models.checkpoint.weights import loaded_files

SMALL_NAMES = (
    "config.json", "generation_config.json", FAST, *(name for names in VOCABULARIES for name in names), *MODELS,
    *CONFIGS, "tekken.json", "chat_template.jinja", "adapter_config.json", *QUANTIZATION_FILES,
)  # fmt: skip
CHUNK_BYTES = 1 << 20
HASH_BYTES = 16


def small_file_hashes(folder: Path) -> dict[str, str]:
    """The hash of each small file that decides answers, by its name in the folder."""
    templates = (folder / "additional_chat_templates").glob("*.jinja")
    paths = [folder / name for name in SMALL_NAMES] + sorted(templates)
    return {path.relative_to(folder).as_posix(): file_hash([path]) for path in paths if is_file(path)}


def weights_hash(folder: Path) -> str:
    """The hash of the weights that are loaded, with their names; other files of the folder do not change it."""
    return file_hash(loaded_files(folder, read_json_object(folder / "config.json")), with_names=True)


def combined_hash(hashes: dict[str, str]) -> str:
    """One hash of several files' names and hashes."""
    return hashlib.blake2b(repr(sorted(hashes.items())).encode(), digest_size=HASH_BYTES).hexdigest()


def file_hash(paths: Iterable[Path], *, with_names: bool = False) -> str:
    """One hash of the content of some files. Raises `CheckpointProblem`."""
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for path in paths:
        if with_names:
            digest.update(path.name.encode())
        with open_file(path) as file:
            try:
                while part := file.read(CHUNK_BYTES):
                    digest.update(part)
            except OSError as error:
                raise CheckpointProblem(f"{path} cannot be read: {error.strerror}; check the file") from error
    return digest.hexdigest()
