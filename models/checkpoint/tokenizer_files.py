"""The files of a model's tokenizer: whether there is one, and whether this machine can read it."""

from __future__ import annotations

import base64
import binascii
from importlib.util import find_spec
from pathlib import Path

from models.checkpoint.small_files import CheckpointProblem, check_content, check_text, is_file, read_json_object

FAST = "tokenizer.json"
#: Files that make a tokenizer together, without the one above.
VOCABULARIES = (("vocab.json", "merges.txt"), ("vocab.txt",))
MODELS = (
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model", "tiktoken.model",
)  # fmt: skip
#: Each of these makes a tokenizer.
TOKENIZERS = ((FAST,), *VOCABULARIES, *((name,) for name in MODELS))
#: JSON files beside a tokenizer; each may be absent.
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json")
#: Modules that read a tokenizer's model file, and the packages that have them.
SENTENCEPIECE = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
TIKTOKEN = {"tiktoken": "tiktoken"}


def check_tokenizer(folder: Path) -> None:
    """Raises `CheckpointProblem` for a folder whose tokenizer is absent, damaged, or needs a package that is absent."""
    for name in CONFIGS:
        if is_file(folder / name):
            read_json_object(folder / name)
    for path in [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]:
        if is_file(path):
            check_text(path)
    if is_file(folder / FAST):
        _check_fast(folder / FAST)
        return
    for names in VOCABULARIES:
        if all(is_file(folder / name) for name in names):
            for name in names:
                check_text(folder / name)
            return
    if model := next((name for name in MODELS if is_file(folder / name)), None):
        _check_model(folder / model)
        return
    if is_file(folder / "tekken.json"):
        raise CheckpointProblem(f"{folder} has a tokenizer in Mistral's own format alone; {_remedy()}")
    raise CheckpointProblem(f"{folder} has no tokenizer ({FAST} or another); {_remedy()}")


def _check_fast(path: Path) -> None:
    """Reads the file as JSON; the producer and the engine make a tokenizer of it."""
    content = read_json_object(path)
    if not isinstance(content.get("model"), dict):
        raise CheckpointProblem(f"{path} is not a tokenizer: it has no model; download it again")


def _check_model(path: Path) -> None:
    is_tiktoken = _is_tiktoken(check_content(path))
    needed = TIKTOKEN if is_tiktoken else SENTENCEPIECE
    if absent := [package for module, package in needed.items() if not _is_installed(module)]:
        raise CheckpointProblem(
            f"{path} can be read with {' and '.join(absent)} only; pip install {' '.join(absent)}, or copy {FAST} of "
            "the same model into the folder"
        )


def _is_tiktoken(head: bytes) -> bool:
    """Tiktoken's lines are a token in base64 and its rank; SentencePiece's file is a protocol buffer."""
    token, _, rank = head.split(b"\n")[0].partition(b" ")
    try:
        base64.b64decode(token, validate=True)
    except binascii.Error:
        return False
    return bool(token) and rank.strip().isdigit()


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _remedy() -> str:
    return f"copy the model's {FAST} and tokenizer_config.json into it"
