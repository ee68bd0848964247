"""The text of answers: what they add to their prompts, for tokenizers of every family.

The tokenizer's own `decode` of prompt and answer together is the oracle.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer
from transformers.models.canine.tokenization_canine import CanineTokenizer

from tests.support.tokenizer_families import FAMILIES, WITHOUT_RULE, tokenizer_of
from worker.engine.detokenizer import Detokenizer
from worker.engine.scheduling.stop_search import StopSearch
from worker.engine.text.token_texts import REPLACEMENT

DETOKENIZERS = {family: Detokenizer(tokenizer_of(family)) for family in FAMILIES}

SNIPPETS = [
    "Once upon a time", " hedgehog", ", isn't it ?", " n't", " 's", "'", " ", "  ", "\n", "\t", "é!", "two words", "é",
    "日本", "🦔", "👩‍👩‍👧", "e\u0301", "</s>", "<|im_end|>", "<tool>", "the", ".", " .", "\ufffd", 
    "12 345", "\u200d", "▁", "ü",
]  # fmt: skip
texts = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=6), max_size=8).map("".join)


def ids_of(family: str) -> st.SearchStrategy[list[int]]:
    """Token ids of text, or any at all, unknown ones among them."""
    tokenizer = tokenizer_of(family)
    of_text = texts.map(lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return of_text | st.lists(st.integers(0, len(tokenizer) + 2), max_size=10)


def prompt_ids_of(family: str) -> st.SearchStrategy[list[int]]:
    return ids_of(family).filter(bool)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rule_is_found_for_all_but_the_strangest(family: str) -> None:
    assert (DETOKENIZERS[family]._texts is None) == (family in WITHOUT_RULE)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60)
@given(data=st.data())
def test_prompt_and_text_are_what_the_tokenizer_decodes(family: str, data: Any) -> None:
    prompt_ids, answer_ids = data.draw(prompt_ids_of(family)), data.draw(ids_of(family))
    ours = DETOKENIZERS[family]
    text, pieces = ours.text(answer_ids, prompt_ids), ours.pieces(answer_ids, prompt_ids)
    assert len(pieces) == len(answer_ids)
    assert "".join(pieces) == text
    prompt, whole = ours.decode(prompt_ids), ours.decode([*prompt_ids, *answer_ids])
    has_byte_tokens = family in ("llama2", "gemma")  # a byte may make those before it invalid, each by itself
    if whole.startswith(prompt) and not (has_byte_tokens and prompt.endswith(REPLACEMENT)):
        assert prompt + text == whole
    else:  # the answer has completed a character of the prompt, or removed a space
        assert whole.endswith(text)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40)
@given(data=st.data())
def test_without_a_prompt_the_text_is_the_whole_one(family: str, data: Any) -> None:
    ids = data.draw(ids_of(family))
    assert "".join(DETOKENIZERS[family].pieces(ids)) == DETOKENIZERS[family].decode(ids)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40)
@given(data=st.data())
def test_a_stream_gives_the_same_text(family: str, data: Any) -> None:
    prompt_ids, answer_ids = data.draw(prompt_ids_of(family)), data.draw(ids_of(family))
    stream, text = DETOKENIZERS[family].stream(prompt_ids), ""
    for end, token_id in enumerate(answer_ids, start=1):
        text += stream.append(token_id)
        shown = text + stream.open
        ended = DETOKENIZERS[family].text(answer_ids[:end], prompt_ids)
        assert text + stream.copy().close() == ended
        unfinished = ended.removeprefix(shown)
        assert not unfinished.strip(REPLACEMENT) or ended.endswith(REPLACEMENT)  # then a run of bytes is invalid


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60)
@given(data=st.data())
def test_stop_strings_are_found_in_exactly_this_text(family: str, data: Any) -> None:
    prompt_ids, answer_ids = data.draw(prompt_ids_of(family)), data.draw(ids_of(family).filter(bool))
    ours = DETOKENIZERS[family]
    text = ours.text(answer_ids, prompt_ids)
    parts = st.tuples(st.integers(0, len(text)), st.integers(1, 4)).map(lambda part: text[part[0] : sum(part)])
    stops = data.draw(st.lists((parts | st.sampled_from(SNIPPETS)).filter(bool), min_size=1, max_size=3))
    search, lazy = StopSearch(ours.stream(prompt_ids), stops), StopSearch(ours.stream(prompt_ids), stops)
    found, end = None, 0
    while found is None and end < len(answer_ids):
        assert not any(stop in ours.text(answer_ids[:end], prompt_ids).rstrip(REPLACEMENT) for stop in stops)
        end += 1
        found = (search.copy() if end % 2 else search).extend(answer_ids, end)
        assert found is not None or search.extend(answer_ids, end) is None
        # Looking only after tokens that may complete one finds the same.
        assert (lazy.extend(answer_ids, end) if lazy.may_complete(answer_ids[end - 1]) else None) == found
    if found is None:
        lazy.extend(answer_ids, end)
        assert lazy.close() == search.copy().close()
    found = search.close() if found is None else found
    until = ours.text(answer_ids[:end], prompt_ids)
    starts = [until.find(stop) for stop in stops if stop in until]
    assert found == (min(starts) if starts else None)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25)
@given(data=st.data())
def test_the_bytes_of_tokens_join_to_the_text(family: str, data: Any) -> None:
    ours = DETOKENIZERS[family]
    prompt_ids, answer = data.draw(prompt_ids_of(family)), data.draw(texts)
    answer_ids = list(tokenizer_of(family)(answer, add_special_tokens=False)["input_ids"])
    text, pieces = ours.text(answer_ids, prompt_ids), ours.pieces(answer_ids, prompt_ids)
    own = [ours.token_bytes(token_id) for token_id in answer_ids]
    joined = b"".join(piece.encode() if data is None else data for piece, data in zip(pieces, own, strict=True))
    if REPLACEMENT not in text:
        assert joined.decode().endswith(text)
        assert joined == text.encode() or REPLACEMENT in ours.decode(prompt_ids)


@pytest.mark.parametrize(
    ("family", "prompt", "answer", "text"),
    [
        ("byte-level", "Once", " upon a time", " upon a time"),
        ("llama2", "the", "the", " the"),
        ("gemma", "the", " the", " the"),
        ("unigram", "Once", "upon a time", " upon a time"),
        ("word-piece-cleaning", "it's", "fine , isn't it ?", " fine, isn't it?"),
        ("word-level", "Once upon", "a time,", " a time,"),
    ],
)
def test_the_space_before_an_answer_is_kept(family: str, prompt: str, answer: str, text: str) -> None:
    tokenizer, ours = tokenizer_of(family), DETOKENIZERS[family]
    prompt_ids = list(tokenizer(prompt)["input_ids"])
    answer_ids = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
    assert ours.text(answer_ids, prompt_ids) == text


def test_parts_of_characters_have_their_true_bytes() -> None:
    for family in ("byte-level", "llama2"):
        tokenizer, ours = tokenizer_of(family), DETOKENIZERS[family]
        ids = list(tokenizer("語€", add_special_tokens=False)["input_ids"])
        data = [ours.token_bytes(token_id) or b"" for token_id in ids]
        assert b"".join(data).decode() == "語€"
        assert b"\xe2" in data or b"\xe2\x82" in data


def test_special_tokens_are_in_the_text() -> None:
    for family in FAMILIES:
        tokenizer, ours = tokenizer_of(family), DETOKENIZERS[family]
        prompt_ids = list(tokenizer("the", add_special_tokens=False)["input_ids"])
        end = int(tokenizer.get_vocab()["<|im_end|>"])
        assert "<|im_end|>" in ours.text([end], prompt_ids)


@pytest.mark.parametrize("kind", [ByT5Tokenizer, CanineTokenizer])
@pytest.mark.parametrize("cleans_up", [False, True])
def test_a_tokenizer_without_a_fast_form_decodes_by_itself(kind: Any, cleans_up: bool) -> None:
    tokenizer = kind(clean_up_tokenization_spaces=cleans_up)
    ours = Detokenizer(tokenizer)
    ids = tokenizer("Hello, wörld 🦔!", add_special_tokens=False)["input_ids"]
    for end in range(len(ids)):
        pieces = ours.pieces(ids[end:], ids[:end])
        assert "".join(pieces) == ours.text(ids[end:], ids[:end])
        assert ours.decode(ids[:end]).rstrip(REPLACEMENT) + "".join(pieces) == tokenizer.decode(ids)


def test_a_text_that_loses_its_end_adds_nothing() -> None:
    """A NUL at the end of the prompt's text, which the text of prompt and answer has no more."""

    class Shrinking:
        def decode(self, token_ids: list[int]) -> str:
            return "ab\0" if len(token_ids) == 1 else "ab"

    assert Detokenizer(Shrinking()).text([5], [4]) == ""


def test_a_decoder_that_raises_is_told_by_each_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine starts with it."""

    def fail(*_: Any, **__: Any) -> str:
        raise IndexError("out of range")

    tokenizer = copy.deepcopy(tokenizer_of("word-piece"))
    monkeypatch.setattr(tokenizer, "decode", fail)
    ours = Detokenizer(tokenizer)
    with pytest.raises(IndexError):
        ours.pieces([5, 6], [7])
