"""A small tokenizer of each family that models have, trained here on a few sentences."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "Once upon a time, there was a tiny hedgehog named Sonic. He didn't like rain!",
    "It's fine , isn't it ? I'm sure they've seen 12 345 things ; we're here .",
    "Grüße aus Köln, naïve café. Привет, мир! 日本語のテキスト 🦔🦔 👩‍👩‍👧",
    "def f(x):\n\treturn  x * 2   # twice\n\n",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>"]
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _unigram(prepend_scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _byte_fallback(*, has_prefix_space: bool) -> Tokenizer:
    """As Llama 2's with the space before the text, as Gemma's without."""
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyzHOI.,!'", "▁t", "▁th", "he", "▁the", "▁▁", "hedge", "in", "▁H", "ü"]
    vocab = {token: index for index, token in enumerate([*SPECIAL, *BYTE_TOKENS, *pieces])}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁t", "h"), ("▁", "▁"), ("i", "n"), ("▁", "H")]
    tokenizer = Tokenizer(models.BPE(vocab, [m for m in merges if "".join(m) in vocab], byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if has_prefix_space:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=180, special_tokens=SPECIAL))
    return tokenizer


def _word_piece_that_cleans() -> Tokenizer:
    tokenizer = _word_piece()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return tokenizer


def word_level() -> Tokenizer:
    """Words between spaces, each a token; no decoder."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator([*SENTENCES, "' n't 's 'm"], trainers.WordLevelTrainer(special_tokens=SPECIAL))
    return tokenizer


def _end_of_word() -> Tokenizer:
    """As the first GPT's: the space belongs to the token before, if another one follows."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _regex() -> Tokenizer:
    """Its decoder has a step without a rule for single tokens."""
    tokenizer = _unigram("always")
    steps = [decoders.Metaspace(), decoders.Fuse(), decoders.Replace(Regex("  +"), " ")]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


_BUILDERS: dict[str, tuple[Callable[[], Tokenizer], dict[str, Any]]] = {
    "byte-level": (_byte_level, {}),
    "byte-level-cleaning": (_byte_level, {"clean_up_tokenization_spaces": True}),
    "byte-level-cleaned": (
        _byte_level,
        {
            "clean_up_tokenization_spaces": True,
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
        },
    ),
    "unigram": (lambda: _unigram("always"), {}),
    "unigram-first": (lambda: _unigram("first"), {}),
    "unigram-never": (lambda: _unigram("never"), {}),
    "unigram-cleaning": (lambda: _unigram("always"), {"clean_up_tokenization_spaces": True}),
    "llama2": (lambda: _byte_fallback(has_prefix_space=True), {}),
    "gemma": (lambda: _byte_fallback(has_prefix_space=False), {}),
    "word-piece": (_word_piece, {"clean_up_tokenization_spaces": False}),
    "word-piece-cleaning": (_word_piece_that_cleans, {"clean_up_tokenization_spaces": True}),
    "word-level": (word_level, {"clean_up_tokenization_spaces": False}),
    "word-level-cleaning": (word_level, {"clean_up_tokenization_spaces": True}),
    "end-of-word": (_end_of_word, {}),
    "regex": (_regex, {}),
}

FAMILIES = tuple(_BUILDERS)

#: Families whose decoders give single tokens no text of their own.
WITHOUT_RULE = ("end-of-word", "regex")


@cache
def tokenizer_of(family: str, *, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """A family's tokenizer as Transformers wraps it, with special tokens, and added ones of several kinds."""
    build, options = _BUILDERS[family]
    tokenizer = build()
    tokenizer.add_tokens(["<tool>", "é!", "two words"])
    if adds_bos:
        bos = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_end|>"],
        **options,
    )
