"""Cleaning, as tokenizers with `clean_up_tokenization_spaces` do it: Transformers removes spaces, nothing else."""

from __future__ import annotations

#: Strings, in the order of Transformers' `clean_up_tokenization`, and the places of their spaces that are removed.
RULES = (
    (" .", (0,)), (" ?", (0,)), (" !", (0,)), (" ,", (0,)), (" ' ", (0, 2)), (" n't", (0,)), (" 'm", (0,)),
    (" 's", (0,)), (" 've", (0,)), (" 're", (0,)),
)  # fmt: skip

#: Characters after which one of the strings may go on.
INNER = " 'nvr"


def kept_indices(text: str) -> list[int]:
    """The indices of the characters that cleaning leaves."""
    kept = list(range(len(text)))
    current = text
    for string, places in RULES:
        removed: set[int] = set()
        start = current.find(string)
        while start >= 0:
            removed.update(start + place for place in places)
            start = current.find(string, start + len(string))
        if removed:
            kept = [index for position, index in enumerate(kept) if position not in removed]
            current = "".join(text[index] for index in kept)
    return kept


def cleaned(text: str, start: int = 0) -> str:
    """The cleaned text, without what is left of the characters before `start`."""
    if " " not in text:
        return text[start:]
    return "".join(text[index] for index in kept_indices(text) if index >= start)


def safe_end(text: str) -> int:
    """The end of the part whose cleaning does not depend on the rest, nor the rest's on it."""
    return len(text.rstrip(INNER))
