"""The table of `docs/models.md`, between two marks; a test compares it with the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.model_matrix.invariance import NUMBERS_OF_A_SEQUENCE
from models.checkpoint.paths.known_paths import KnownPath, known_paths, tested_with
from producer.model_files.model_table import COLUMNS, cells

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- made by python -m benchmarks.model_matrix -->", "<!-- end of the table -->"


def table_text() -> str:
    """The paragraph and the table in Markdown."""
    known = known_paths()
    counts = Counter(row.path for row in known.values())
    tried = ", ".join(f"{count} {path}" for path, count in sorted(counts.items()))
    head = (
        f"{len(known)} types of causal language models, Transformers {tested_with()}: {tried}. Each is a tiny random "
        "model in fp32; a mixed batch with refills, chunked prompts and cancellations beside `generate`, and samples "
        "beside themselves alone. A number is answers that are equal, of those compared; beams are empty where "
        f"`generate` has none. `invariant`: {_sequences(known.values())} alone, with 8 and with 64 slots, in another "
        "order and with prompts in pieces have the same tokens and stored log-probabilities, bit for bit, on a CPU in "
        "fp32 and in bf16; through the fallback each is decoded by itself."
    )
    lines = [" | ".join(cells(name, row)).replace("_", "\\_") for name, row in known.items()]
    return "\n".join(
        [head, "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS), *(f"| {line} |" for line in lines)]
    )


def _sequences(rows: Iterable[KnownPath]) -> str:
    """The number decoded of each type, and of those that were tried when it was another one."""
    numbers = Counter(row.fp32[1] // NUMBERS_OF_A_SEQUENCE for row in rows if row.fp32[1])
    (most, _), *others = sorted(numbers.items(), reverse=True)
    return f"{most} sequences" + "".join(f" ({number} of {count} types)" for number, count in others)


def page_with_table(page: str) -> str:
    """The page with the table that the data make."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table_text()}\n{END}{rest.split(END)[1]}"


def write_documentation() -> None:
    PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
