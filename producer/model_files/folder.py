"""The small files of a model, from its folder or the hub's cache. Each is read at most once; weights never are."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.checkpoint.hub import model_folder
from models.checkpoint.probes import ids_unless_refused
from models.checkpoint.small_files import CheckpointProblem, read_json_object
from models.model_defaults import MAX_TOKEN_IDS
from producer.errors import UsageError
from producer.model_files.tokenizer_calls import TokenizerFailed, tokenizer_call

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: A text that every tokenizer takes.
PROBE = "Hello, world! 1 + 1"


class ModelFiles:
    """The small files of one model. A file that is absent reads as empty; a damaged one raises `UsageError`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.json_file("config.json")

    @property
    def text_config(self) -> dict[str, Any]:
        """The configuration of the language model inside a model of several kinds of input."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        return self.json_file("generation_config.json")

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        return self.json_file("tokenizer_config.json")

    @property
    def context_window(self) -> int | None:
        """Tokens of prompt and answer together, at most; None where the configuration does not say."""
        value = self.text_config.get("max_position_embeddings")
        return value if isinstance(value, int) else None

    @property
    def has_tokenizer_files(self) -> bool:
        """Whether the files of the tokenizer are here too; the hub's cache may have the config alone."""
        names = ("tokenizer_config.json", "tokenizer.json", "chat_template.jinja")
        return any((self.folder / name).is_file() for name in names)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of `tokenizer.json`; None for a folder without that file."""
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            return None
        status = path.stat()
        return _read_tokenizer(path, status.st_mtime_ns, status.st_size)

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens that chat templates see, by their names, from the files where Transformers looks."""
        configs = [self.tokenizer_config]
        if "added_tokens_decoder" not in self.tokenizer_config:
            configs.append(self.json_file("special_tokens_map.json"))  # of older folders
        given: dict[str, Any] = {}
        for config in configs:
            given |= {name: token for name, token in config.items() if name.endswith("_token")}
            if isinstance(extra := config.get("extra_special_tokens"), dict):
                given |= extra
        found = {name: token.get("content") if isinstance(token, dict) else token for name, token in given.items()}
        return {name: token for name, token in found.items() if isinstance(token, str)}

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """The tokens beside the vocabulary proper, special ones among them, with their ids."""
        configured = self.tokenizer_config.get("added_tokens_decoder")
        if isinstance(configured, dict) and configured:
            parts = [(part, token_id) for token_id, part in configured.items() if isinstance(part, dict)]
            return {str(part.get("content")): int(token_id) for part, token_id in parts if _is_id(token_id)}
        if self.tokenizer is None:
            return {}
        return {token.content: token_id for token_id, token in self.tokenizer.get_added_tokens_decoder().items()}

    def token_id(self, token: str) -> int | None:
        """The id of a token as the tokenizer writes it; None where it does not know the token."""
        if token in self.added_tokens:
            return self.added_tokens[token]
        return None if self.tokenizer is None else self.tokenizer.token_to_id(token)

    @cached_property
    def chat_templates(self) -> dict[str, str]:
        """The chat templates by name, from the places where Transformers looks; a single one is named `default`."""
        files = {"default": self.folder / "chat_template.jinja"} | {
            path.stem: path for path in sorted((self.folder / "additional_chat_templates").glob("*.jinja"))
        }
        found = {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()}
        return found or _configured_templates(self.tokenizer_config.get("chat_template"))

    def json_file(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.is_file():
            return {}
        try:
            return read_json_object(path)
        except CheckpointProblem as problem:
            raise UsageError(str(problem)) from problem


def model_files(model: str, *, revision: str | None = None) -> ModelFiles | None:
    """The model's files: of its folder, of the hub's cache, else fetched from the hub; None where none has them."""
    try:
        folder = model_folder(model, revision)
    except CheckpointProblem:
        return None
    return ModelFiles(model, folder) if folder.is_dir() else None


@lru_cache(maxsize=2)
def _read_tokenizer(path: Path, mtime_ns: int, size: int) -> Tokenizer:  # noqa: ARG001 - of the file as it is now
    """The tokenizer of a file, read once a command: a large vocabulary takes half a second."""
    from tokenizers import Tokenizer

    try:
        with tokenizer_call():
            tokenizer = Tokenizer.from_file(str(path))
            tokenizer.no_truncation()  # a file may ask for it; lengths are of the whole text
            tokenizer.no_padding()
            tokenizer.encode("")  # some faults show only then
            ids_unless_refused(lambda probe: tokenizer.encode(probe).ids, PROBE)
    except TokenizerFailed as failed:
        raise UsageError(f"{path} is not a tokenizer: {failed}; copy the file again") from failed
    return tokenizer


def _is_id(text: str) -> bool:
    """Whether a key of the added tokens is a token id. Python does not read numbers of thousands of digits."""
    return text.isdecimal() and len(text) <= len(str(MAX_TOKEN_IDS))


def _configured_templates(value: Any) -> dict[str, str]:
    """The templates of a tokenizer's configuration: one text, or a list of named ones."""
    if isinstance(value, str):
        return {"default": value}
    if not isinstance(value, list):
        return {}
    return {
        part["name"]: part["template"]
        for part in value
        if isinstance(part, dict) and {"name", "template"} <= part.keys()
    }
