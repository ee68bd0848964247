"""The model's tokenizer as its `tokenizer.json` says, and prompts without a second BOS."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from models.checkpoint.probes import ids_unless_refused
from models.checkpoint.small_files import is_library_error

logger = logging.getLogger(__name__)

FILE = "tokenizer.json"

#: Texts on which a tokenizer is compared with the file it is said to come from.
PROBES = (
    "Hello, world! It's 2026.",
    "  two  spaces\tand\n\nlines \r\n",
    "naïve façade, Grüße, e\u0301te\u0301, ﬁne Ⅳ",
    "日本語のテキスト 한국어 Привет العربية",
    "🦔 👩\u200d👩\u200d👧 \u00a0\u200b",
    "0123456789 3.14 1,000,000",
    "def f(x):\n    return x ** 2  # ok",
    "don't I'll we've UPPER lower",
)

#: Added tokens, and the vocabulary's first ones, that the comparison covers, at most.
MAX_ADDED = 64


def load_tokenizer(name: str, **source: Any) -> Any:
    """The tokenizer of a folder or hub id.

    Transformers builds some models' tokenizers by its own rules, with no more than the vocabulary of `tokenizer.json`.
    Where that gives other tokens than the file, the file's tokenizer is taken, with the configuration's special
    tokens and chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **source)
        problem = _difference(tokenizer, _tokenizer_file(name, source.get("revision")))
    except BaseException as error:  # a class may raise anything for a file that is not as it expects
        if not is_library_error(error) or _tokenizer_file(name, source.get("revision")) is None:
            raise
        tokenizer, problem = None, f"the class that Transformers takes fails with {type(error).__name__}: {error}"
    if problem is None:
        return tokenizer
    logger.warning("the tokenizer of %s is taken from its %s: %s", name, FILE, problem)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(name, trust_remote_code=False, **source)
    tokenizer("")  # some faults show only then
    ids_unless_refused(lambda text: tokenizer(text)["input_ids"], PROBES[0])
    return tokenizer


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt; the tokens that the tokenizer puts first are not doubled where the prompt has them."""
    ids: list[int] = tokenizer(prompt)["input_ids"]
    added: list[int] = tokenizer("")["input_ids"]
    for length in range(len(added), 0, -1):
        if ids[:length] == added[:length] == ids[length : 2 * length]:
            own = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            if ids[length : length + len(own)] == own:
                return ids[length:]
    return ids


def _tokenizer_file(name: str, revision: str | None) -> Path | None:
    """The `tokenizer.json` of a folder, or of the hub's cache."""
    if Path(name).is_dir():
        path = Path(name) / FILE
        return path if path.is_file() else None
    cached = try_to_load_from_cache(name, FILE, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _difference(tokenizer: Any, path: Path | None) -> str | None:
    """The first text that the tokenizer and the file, if there is one, encode or decode differently."""
    if path is None:
        return None
    of_file = Tokenizer.from_file(str(path))
    of_file.no_truncation()
    of_file.no_padding()
    name = f"Transformers' {type(tokenizer).__name__}"
    for text in _probes(of_file):
        ids = ids_unless_refused(lambda text: of_file.encode(text, add_special_tokens=False).ids, text)
        if ids != ids_unless_refused(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], text):
            return f"{name} gives other ids for {text!r}"
        if ids is None:
            continue
        backend = getattr(tokenizer, "backend_tokenizer", of_file)
        if backend.decode(ids, skip_special_tokens=False) != of_file.decode(ids, skip_special_tokens=False):
            return f"{name} decodes the ids of {text!r} to another text"
    return None


def _probes(of_file: Tokenizer) -> Iterator[str]:
    yield from PROBES
    for added in list(of_file.get_added_tokens_decoder().values())[:MAX_ADDED]:
        yield f"a {added.content} b{added.content}c"
    for token_id in range(min(MAX_ADDED, of_file.get_vocab_size())):  # the only texts of a closed vocabulary
        yield of_file.decode([token_id], skip_special_tokens=False)
