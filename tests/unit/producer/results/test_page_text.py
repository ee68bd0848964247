"""Texts of others on pages: what is invisible is shown, and what a script or an emoji needs is left as it is."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.results.page_text import page_text

#: Texts, each with what a page shows of it.
SHOWN = {
    "plain\ttext\n": "plain\ttext\n",
    "a\r\nb\0": "a␍\nb␀",
    "\x1b[2J \x7f \x9b": "␛[2J ␡ ⟨U+009B⟩",
    "\u202eevil\u202c": "⟨U+202E⟩evil⟨U+202C⟩",
    "pass\u200bword": "pass⟨U+200B⟩word",
    "a\u200db": "a⟨U+200D⟩b",
    "می\u200cخواهم": "می\u200cخواهم",  # a joiner of Persian
    "क्\u200dष": "क्\u200dष",
    "👨\u200d👩\u200d👧": "👨\u200d👩\u200d👧",
    "❤\ufe0f\u200d🔥 1\ufe0f\u20e3": "❤\ufe0f\u200d🔥 1\ufe0f\u20e3",
    "葛\U000e0100": "葛\U000e0100",
    "葛\U000e0100\U000e0101": "葛\U000e0100⟨U+E0101⟩",  # others behind it carry a hidden text
    "ok\U000e0068\U000e0069": "ok⟨U+E0068⟩⟨U+E0069⟩",
    "\u200d🔥": "⟨U+200D⟩🔥",
    "שלום": "שלום",
}


#: A byte of an argument that is not UTF-8, and half an emoji; neither is in a column of text.
HALVES = {"\udcff": "⟨U+DCFF⟩", "a\ud83db": "a⟨U+D83D⟩b"}


@pytest.mark.parametrize("text", SHOWN | HALVES)
def test_a_text_is_shown(text: str) -> None:
    assert page_text(text) == (SHOWN | HALVES)[text]


@given(st.text(st.characters() | st.sampled_from("\u200d\u200c\ufe0f\u202e🔥a\x00"), max_size=12))
def test_nothing_is_left_that_is_not_seen(text: str) -> None:
    shown = page_text(text)
    assert page_text(shown) == shown
    assert all(unicodedata.category(each) not in ("Cc", "Cs") or each in "\t\n" for each in shown)
    assert not set(shown) & set("\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\u00ad")
