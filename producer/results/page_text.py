"""Text of others on a page: all of it is seen, and none of it turns the direction of what stands beside it.

The program of a report has the same rule for the texts that it shows (`visible` in assets/dom.js).
"""

from __future__ import annotations

import re

#: Default_Ignorable_Code_Point of Unicode: a font draws nothing for them.
_IGNORABLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)

_VARIATIONS = "[\ufe00-\ufe0f\u180b-\u180d\u180f\U000e0100-\U000e01ef]"

#: A character that may need one of those beside it.
_LETTER = rf"[^\x00-\x7f{_IGNORABLE}]"

#: The first group is kept: a joiner between letters of its script or emoji, a variation behind one.
_PART = re.compile(
    rf"((?:(?<={_LETTER})|(?<={_LETTER}{_VARIATIONS}))[\u200c\u200d](?={_LETTER})"
    rf"|(?<={_LETTER}){_VARIATIONS}|\ufe0f(?=\u20e3))"
    rf"|[\x00-\x08\x0b-\x1f\x7f-\x9f{_IGNORABLE}\u2028\u2029\ufff9-\ufffb\ud800-\udfff]"
)


def page_text(text: str) -> str:
    """The text with symbols or code points in the place of characters that a reader does not see."""
    return text if text.isascii() and text.isprintable() else _PART.sub(_shown, text)


def _shown(part: re.Match[str]) -> str:
    if part[1]:
        return part[1]
    code = ord(part[0])
    if code < 0x20 or code == 0x7F:
        return "\u2421" if code == 0x7F else chr(0x2400 + code)
    return f"⟨U+{code:04X}⟩"
