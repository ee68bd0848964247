"""Tokenizers as model folders have them: `tokenizer.json` decides, and no prompt gets a second BOS."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import Unigram, WordLevel, WordPiece
from transformers import AutoTokenizer

from producer.errors import LineProblem
from producer.model_files.folder import ModelFiles
from producer.prompts import dry_run
from producer.prompts.prompt_check import PromptCheck
from tests.conftest import TOY_MODEL
from tests.support.tokenizer_families import FAMILIES, tokenizer_of
from worker.engine.detokenizer import Detokenizer
from worker.engine.text.tokenizer import encode_prompt, load_tokenizer

CONFIG = {
    "tokenizer_class": "Qwen2Tokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "additional_special_tokens": ["<|im_end|>"],
    "chat_template": "{% for message in messages %}<s>{{ message.content }}{% endfor %}",
}

#: Model type -> the tokenizer class that its folders name.
MODELS = {"qwen2": "Qwen2Tokenizer", "llama": "LlamaTokenizerFast", "gemma": "GemmaTokenizer", "t5": "T5Tokenizer"}


def folder(path: Path, tokenizer: Tokenizer, model_type: str = "qwen2") -> str:
    """A model folder without weights."""
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"model_type": model_type, "architectures": ["Qwen2ForCausalLM"]}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    named = CONFIG | {"tokenizer_class": MODELS[model_type]}
    (path / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("family", ["word-level", "word-piece", "unigram", "llama2", "gemma", "byte-level"])
def test_the_file_decides(family: str, model_type: str, tmp_path: Path) -> None:
    of_file = tokenizer_of(family).backend_tokenizer
    loaded = load_tokenizer(folder(tmp_path, of_file, model_type))
    for text in ("Once upon a time", "it's  fine , isn't\tit ?\n", "Grüße 日本 🦔", "a <|im_end|></s> b"):
        ids = loaded(text, add_special_tokens=False)["input_ids"]
        assert ids == of_file.encode(text, add_special_tokens=False).ids, text
        assert Detokenizer(loaded).decode(ids) == of_file.decode(ids, skip_special_tokens=False)
    assert loaded.convert_tokens_to_ids("<|im_end|>") in loaded.all_special_ids
    assert loaded.eos_token == "</s>"
    rendered = loaded.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered == "<s>Hi"


def test_a_difference_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = folder(tmp_path, tokenizer_of("word-level").backend_tokenizer)
    with caplog.at_level(logging.WARNING, logger="worker.engine.text.tokenizer"):
        load_tokenizer(name)
    (record,) = caplog.records
    assert "is taken from its tokenizer.json: Transformers' Qwen2Tokenizer gives other ids" in record.getMessage()


def test_a_folder_that_agrees_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(TOY_MODEL / "config.json", tmp_path)
    AutoTokenizer.from_pretrained(TOY_MODEL).save_pretrained(tmp_path)  # a file of Qwen2's own rules
    with caplog.at_level(logging.WARNING, logger="worker.engine.text.tokenizer"):
        assert type(load_tokenizer(str(tmp_path))).__name__ == "Qwen2Tokenizer"
    assert not caplog.records


def test_the_toy_model_reads_prompts_as_it_was_trained() -> None:
    """Its digits are tokens of the file; Qwen2's own rules part them."""
    of_file = Tokenizer.from_file(str(TOY_MODEL / "tokenizer.json"))
    text = "Transfer 7500 pounds to Max"
    assert encode_prompt(load_tokenizer(str(TOY_MODEL)), text) == of_file.encode(text).ids


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.Lowercase()),
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda tokenizer: setattr(tokenizer, "decoder", decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])),
        lambda tokenizer: tokenizer.add_special_tokens(["<|tool|>"]),
        lambda tokenizer: tokenizer.enable_truncation(4),
    ],
)
def test_a_folder_with_another_rule_follows_it(change: Any, tmp_path: Path) -> None:
    shutil.copytree(TOY_MODEL, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    of_file = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    change(of_file)
    of_file.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path))
    of_file.no_truncation()
    for text in ("Hello World, a long text", "<|im_start|>user\nHi<|tool|>"):
        ids = loaded(text, add_special_tokens=False)["input_ids"]
        assert ids == of_file.encode(text, add_special_tokens=False).ids
        assert loaded.decode(ids) == of_file.decode(ids, skip_special_tokens=False)


NUMERALS = {token: index for index, token in enumerate(["</s>", "<|im_end|>", *"0123456789", "+", "="])}

#: Models that refuse what is not in their vocabulary, because it has no unknown token.
CLOSED: dict[str, Callable[[], Any]] = {
    "words": lambda: WordLevel(vocab=NUMERALS),
    "word-piece": lambda: WordPiece(vocab=NUMERALS),
    "unigram": lambda: Unigram(vocab=[(token, -1.0) for token in NUMERALS]),
}


@pytest.mark.parametrize("kind", CLOSED)
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_a_vocabulary_without_an_unknown_token(kind: str, model_type: str, tmp_path: Path) -> None:
    """Prompts that it has are answered; the others are refused one by one, and no folder for them."""
    of_file = Tokenizer(CLOSED[kind]())
    of_file.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    name = folder(tmp_path, of_file, model_type)
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    loaded = load_tokenizer(name)
    ids = encode_prompt(loaded, "1 + 2 =")
    assert Detokenizer(loaded).text(ids[1:], ids[:1]) == loaded.decode(ids).removeprefix("1")
    with pytest.raises(Exception, match="(?i)unk"):
        encode_prompt(loaded, "one + 2")
    check = PromptCheck(ModelFiles(name, tmp_path), context_window=16)
    assert check.files.tokenizer is not None
    with pytest.raises(LineProblem, match="prompt cannot be tokenized by .*(?i:unk)"):
        check._check_length("prompt", "one + 2", is_chat=False)
    seen = dry_run._tokenized(check.files, "one + 2", is_chat=False)
    assert seen.doubt is not None and seen.doubt.startswith("the tokenizer refuses it: ")


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=30)
@given(text=st.text(max_size=10), begins=st.booleans())
def test_a_prompt_has_one_bos(family: str, text: str, begins: bool) -> None:
    tokenizer = tokenizer_of(family, adds_bos=True)
    bos = tokenizer.bos_token_id
    ids = encode_prompt(tokenizer, f"<s>{text}" if begins else text)
    own = tokenizer(f"<s>{text}", add_special_tokens=False)["input_ids"]
    assert ids == own if begins else ids == [bos, *tokenizer(text, add_special_tokens=False)["input_ids"]] or ids == own


def test_two_of_them_in_the_prompt_are_the_prompts_own() -> None:
    tokenizer = tokenizer_of("byte-level", adds_bos=True)
    assert encode_prompt(tokenizer, "<s><s>a")[:2] == [tokenizer.bos_token_id] * 2
    without = tokenizer_of("byte-level")
    assert encode_prompt(without, "<s><s>a")[:2] == [without.bos_token_id] * 2
    assert encode_prompt(without, "a")[0] != without.bos_token_id
