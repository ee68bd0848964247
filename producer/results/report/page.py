"""The file of a page: its head, the style, chunks of compressed data, and the program that shows them.

Data never stands in the page as markup: it is JSON, compressed, in base64, and the program makes text of it. A content
security policy lets nothing be fetched and no other program run.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
from collections.abc import Iterable
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any, TextIO

from producer.results.page_text import page_text

ASSETS = files("producer.results.report") / "assets"

#: The modules of the program, each before those that use it. They become one script: a page has no other files.
MODULES = (
    "dom", "data", "format", "diff", "tokens", "tree", "settings", "plots", "matrix", "cards", "prompts", "overview",
    "comparison", "main",
)  # fmt: skip

#: The plotting library and what it stands on.
LIBRARIES = ("d3.min.js", "plot.umd.min.js")

#: The largest whole number that the page's program has exactly.
MAX_WHOLE = 2**53

IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
EXPORT = re.compile(r"^export (?=(async )?function|const|class|let)", re.MULTILINE)


def program() -> str:
    """The modules as one script."""
    parts = (EXPORT.sub("", IMPORT.sub("", _asset(f"{name}.js"))) for name in MODULES)
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def write_page(
    file: TextIO,
    title: str,
    numbers: Iterable[tuple[str, str]],
    chunks: Iterable[tuple[str, Any]],
    *,
    note: str = "",
    back: str | None = None,
) -> None:
    """Writes a page; each chunk is a name and a JSON value, and is written before the next is made.

    `note` says which part of the data it shows; `back` is the address of the page above it, where there is one.
    """
    script, libraries, policy = _scripts()
    head = _asset("page.html")
    values = {
        "title": escape(page_text(title)),
        "policy": policy,
        "style": _asset("style.css"),
        "back": "" if back is None else f'<p class="back"><a href="{escape(back)}">← the run</a></p>',
        "numbers": "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in numbers),
        "note": f'<p class="note">{escape(page_text(note))}</p>' if note else "",
    }
    file.write(re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], head))
    for name, value in chunks:
        file.write(_chunk(name, json.dumps(_exact(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)))
    file.write(libraries)
    file.write(f"<script>{script}</script>\n</body>\n</html>\n")


def _exact(value: Any) -> Any:
    """The value with texts in the place of numbers that the program would round, or that are none in JSON."""
    if isinstance(value, dict):
        return {name: _exact(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_exact(inner) for inner in value]
    is_large = isinstance(value, int) and abs(value) > MAX_WHOLE
    return json.dumps(value) if is_large or (isinstance(value, float) and not math.isfinite(value)) else value


@cache
def _scripts() -> tuple[str, str, str]:
    """The program, the chunk of libraries, and the policy that lets the two run; a server writes many pages."""
    script = program()
    libraries = "".join(f"{_asset(f'vendor/{name}')}\n" for name in LIBRARIES)
    return script, _chunk("libraries", libraries), _policy(script, libraries)


def _chunk(name: str, text: str) -> str:
    encoded = text.encode("utf-8", "backslashreplace")  # half a character becomes JSON's escape
    packed = gzip.compress(encoded, 6, mtime=0)
    return f'<script type="application/gzip" data-chunk="{name}">{base64.b64encode(packed).decode()}</script>\n'


def _policy(*scripts: str) -> str:
    """Only these scripts run, and nothing is fetched."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
