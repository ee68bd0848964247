"""Live workers that serve one model and would not give the same answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import Engine, Row, select

from models.database.live_workers import is_alive
from models.schema.result import Environment
from models.schema.worker import Worker


class Deciding(NamedTuple):
    """A part of an environment that decides answers, beyond the last bits that another card or library changes."""

    name: str
    value: Callable[[Row[Any]], str]
    remedy: str


def _type_of(row: Row[Any]) -> str:
    return f"{row.dtype} with int8 weights" if "int8" in row.attention else row.dtype


DECIDING = (
    Deciding("types", _type_of, "give all of them the same --dtype and --quantize"),
    Deciding("weights", lambda row: row.weights_hash, "give all of them the same model files"),
    Deciding("adapters", lambda row: row.versions.get("adapter", "none"), "give all of them the same --adapter"),
    Deciding("tokenizers or templates", lambda row: row.tokenizer_hash, "give all of them the same model files"),
)


def unlike_lines(database: Engine) -> list[str]:
    """A complaint for each part in which a model's live workers differ; one of a version before 0012 does not tell."""
    return [
        f"an answer depends on the worker that decodes it: those of {model} have different {part.name} "
        f"({_named(rows, part)}); {part.remedy}"
        for model, rows in _environments_by_model(database).items()
        for part in DECIDING
        if len({part.value(row) for row in rows}) > 1
    ]


def _environments_by_model(database: Engine) -> dict[str, list[Row[Any]]]:
    """The environments of the live workers of each model, by the workers' names."""
    columns = (
        Worker.name, Worker.model, Environment.dtype, Environment.attention, Environment.weights_hash,
        Environment.tokenizer_hash, Environment.versions,
    )  # fmt: skip
    statement = select(*columns).join(Environment, Environment.id == Worker.environment_id).where(is_alive())
    found = defaultdict(list)
    with database.begin() as connection:
        for row in connection.execute(statement.order_by(Worker.name)):
            found[row.model].append(row)
    return found


def _named(rows: list[Row[Any]], part: Deciding) -> str:
    """Each value with a worker that has it, and how many more have."""
    workers = defaultdict(list)
    for row in rows:
        workers[part.value(row)].append(row.name)
    return ", ".join(
        f"{value} on {names[0]}" + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")
        for value, names in workers.items()
    )
