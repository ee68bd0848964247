"""`producer models`: the path of every model type that was tried against `generate`."""

from __future__ import annotations

from dataclasses import asdict

from models.checkpoint.paths.known_paths import KnownPath, known_paths, tested_with
from producer.console import print_data, say, stdout
from producer.errors import UsageError
from producer.render import table, to_json

COLUMNS = ("type", "path", "greedy", "beams", "samples", "invariant", "reason")


def show_models(model_types: list[str], *, as_json: bool) -> None:
    """Prints the table, or the rows of some types. Raises `UsageError` for a type that is not in it."""
    known = known_paths()
    if unknown := [name for name in model_types if name not in known]:
        raise UsageError(
            f"the model type {unknown[0]!r} is untested here; the engine checks a model when it loads it, and "
            "`producer doctor --model FOLDER` says the outcome afterwards"
        )
    chosen = {name: known[name] for name in model_types or known}
    if as_json:
        print_data(to_json([{"type": name, **asdict(row)} for name, row in chosen.items()]))
        return
    say(f"tiny random models against Transformers {tested_with()}; answers equal to generate's of those compared")
    stdout.print(table(COLUMNS, [cells(name, row) for name, row in chosen.items()], whole=COLUMNS[:-1]))


def cells(name: str, row: KnownPath) -> tuple[str, ...]:
    """A row of the table as text."""
    counts = (f"{equal}/{compared}" if compared else "" for equal, compared in (row.greedy, row.beams, row.samples))
    return (name, row.path, *counts, _invariance(row), "" if row.path == "packed" else row.reason)


def _invariance(row: KnownPath) -> str:
    """Whether answers are the same bits in any batch; the number types in which they are not."""
    if row.is_batch_invariant is None:
        return ""
    return "yes" if row.is_batch_invariant else f"not in {', '.join(row.variant_dtypes)}"
