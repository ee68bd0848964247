"""The files of a model's tokenizer: whether there is one, and whether this machine can read it."""

from __future__ import annotations

import base64
import binascii
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from models.checkpoint.entries import check_link
from models.checkpoint.small_files import (
    CheckpointProblem,
    check_content,
    check_text,
    is_file,
    read_json_object,
    wrong_value,
)

FAST = "tokenizer.json"
#: Files that make a tokenizer together, without the one above.
VOCABULARIES = (("vocab.json", "merges.txt"), ("vocab.txt",))
MODELS = (
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model", "tiktoken.model",
)  # fmt: skip
#: Each of these makes a tokenizer.
TOKENIZERS = ((FAST,), *VOCABULARIES, *((name,) for name in MODELS))
#: JSON files beside a tokenizer; each may be absent.
ADDED = "added_tokens.json"
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", ADDED, "chat_template.json")
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: Bounds of a normalizer: real ones make a text three times as long, by a few rules.
MAX_EXPANSION, MAX_RULES, MAX_PROBES = 64, 10_000, 100
MAX_PADDING = 1 << 20  # longer than any context window

#: Modules that read a tokenizer's model file, and the packages that have them.
SENTENCEPIECE = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
TIKTOKEN = {"tiktoken": "tiktoken"}


def check_tokenizer(folder: Path) -> None:
    """Raises `CheckpointProblem` for a folder whose tokenizer is absent, damaged, or needs a package that is absent."""
    for name in CONFIGS:
        if is_file(folder / name):
            _check_values(folder / name, read_json_object(folder / name))
    for path in [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]:
        if is_file(path):
            check_link(folder, path)
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


def _check_values(path: Path, content: dict[str, Any]) -> None:
    """Raises `CheckpointProblem` for a value of another kind than every tokenizer takes."""
    for name in SPECIAL_TOKENS:
        token = content.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if not isinstance(text, str) and token is not None:
            raise wrong_value(path, name, "a token", token)
    added = content.get("added_tokens_decoder", {})
    if not isinstance(added, dict) or not all(key.isdecimal() and isinstance(added[key], dict) for key in added):
        raise wrong_value(path, "added_tokens_decoder", "an object of token ids and tokens", added)
    if path.name == ADDED:
        for token, token_id in content.items():
            if type(token_id) is not int:
                raise wrong_value(path, repr(token)[:100], "a token id", token_id)


def _check_fast(path: Path) -> None:
    """Reads the file as JSON; the producer and the engine make a tokenizer of it."""
    content = read_json_object(path, is_large=True)
    if not isinstance(content.get("model"), dict):
        raise CheckpointProblem(f"{path} is not a tokenizer: it has no model; download it again")
    if (length := _padded_length(content.get("padding"))) > MAX_PADDING:
        raise CheckpointProblem(f"{path}: it pads to {length:,} tokens, more than {MAX_PADDING:,}; download it again")
    if (expansion := normalizer_expansion(content.get("normalizer"))) > MAX_EXPANSION:
        raise CheckpointProblem(f"{path}: its normalizer makes texts {expansion:,} times as long; download it again")


def _padded_length(padding: Any) -> int:
    strategy = padding.get("strategy") if isinstance(padding, dict) else None
    length = strategy.get("Fixed") if isinstance(strategy, dict) else None
    return length if isinstance(length, int) else 0


def normalizer_expansion(normalizer: Any) -> int:
    """The factor by which replacements lengthen a text, as far as their patterns tell."""
    rules = _replacements(normalizer)
    factor = 1
    for pattern, content in rules:
        if "Regex" in pattern:  # it may match single characters
            factor *= max(1, len(content))
    probes = [str(pattern["String"]) for pattern, _ in rules if pattern.get("String")][:MAX_PROBES]
    return factor * max((_expansion_of(probe, rules) for probe in probes), default=1)


def _expansion_of(probe: str, rules: list[tuple[dict[str, Any], str]]) -> int:
    """The factor for one text and the replacements of strings alone; replacing stops where it is too large."""
    text = probe
    for pattern, content in rules:
        if old := pattern.get("String"):
            text = text.replace(str(old), content)
            if len(text) > MAX_EXPANSION * len(probe):
                break
    return max(1, -(-len(text) // len(probe)))


def _replacements(normalizer: Any) -> list[tuple[dict[str, Any], str]]:
    """The pattern and the content of each `Replace`, in their order."""
    if not isinstance(normalizer, dict):
        return []
    inner = normalizer.get("normalizers")
    if isinstance(inner, list):
        return [rule for each in inner[:MAX_RULES] for rule in _replacements(each)][:MAX_RULES]
    pattern, content = normalizer.get("pattern"), normalizer.get("content")
    return [(pattern, content)] if isinstance(pattern, dict) and isinstance(content, str) else []


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
