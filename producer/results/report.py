"""`producer report`: one page that stands by itself, with the grid points of a run side by side.

For each prompt and way of decoding: how long, how repetitive, how unlikely, does it parse as JSON, and the text.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from models.database.connection import open_database
from models.settings import Settings
from producer.atomic_file import atomic_file
from producer.console import say
from producer.results.queries import find_run, results, run_progress

MAX_PROMPTS = 200  # a page is for reading; SQL is for the rest
MAX_TOKENS_COLOURED = 2_000  # per answer


def write_report(settings: Settings, reference: str | None, output: Path) -> None:
    """Writes the page. Raises `UsageError`."""
    from jinja2 import Environment, PackageLoader

    database = open_database(settings.database_url, read_only=True)
    run_id = find_run(database, reference)
    ways: dict[str, list[dict[str, Any]]] = defaultdict(list)
    prompts: dict[str, dict[str, Any]] = {}
    num_left_out = 0
    for row in results(database, run_id, with_traces=True):
        answer = _answer(row)
        ways[answer["way"]].append(answer)
        asked = row["prompt"] or json.dumps(row["messages"], ensure_ascii=False, indent=1)
        if asked not in prompts and len(prompts) >= MAX_PROMPTS:
            num_left_out += 1
            continue
        prompts.setdefault(asked, {"text": asked, "answers": []})["answers"].append(answer)
    environment = Environment(
        loader=PackageLoader("producer.results"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html").render(
        run=run_progress(database, run_id),
        ways=[_summary(name, answers) for name, answers in ways.items()],
        prompts=list(prompts.values()),
        num_left_out=num_left_out,
    )
    with atomic_file(output) as file:
        file.write(page)
    say(f"{output}: {sum(map(len, ways.values())):,} answers to {len(prompts):,} prompts, {len(ways)} ways to decode")


def repetition(text: str) -> float:
    """The share of word pairs that came before: 0 where none is repeated."""
    words = text.split()
    pairs = list(zip(words, words[1:], strict=False))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    tokens = (row["trace"] or [])[:MAX_TOKENS_COLOURED]
    length = row["completion_tokens"] or 0
    return {
        "custom_id": row["custom_id"],
        "way": _way(row),
        "state": row["state"],
        "error": row["error"],
        "text": row["text"],
        "finish_reason": row["finish_reason"],
        "length": length,
        "mean_logprob": row["cumulative_logprob"] / length if length else None,
        "repetition": repetition(row["text"] or ""),
        "is_json": is_json(row["text"] or ""),
        "tokens": [{"text": t["token"], "logprob": t["logprob"], "level": _level(t["logprob"])} for t in tokens],
    }


def _way(row: dict[str, Any]) -> str:
    """The grid point without its repetition number, or the strategy where there was no grid."""
    point = {name: value for name, value in (row["grid_point"] or {}).items() if name not in ("repeat", "strategy")}
    return " ".join([row["strategy"], *(f"{name}={value}" for name, value in point.items())])


def _level(logprob: float) -> int:
    """0 for a token that was nearly certain, up to 4."""
    return sum(logprob < least for least in (-0.105, -0.693, -2.303, -4.605))


def _summary(name: str, answers: list[dict[str, Any]]) -> dict[str, Any]:
    done = [answer for answer in answers if answer["text"] is not None]
    return {
        "name": name,
        "count": len(answers),
        "failed": len(answers) - len(done),
        "length": _mean(answer["length"] for answer in done),
        "mean_logprob": _mean(a["mean_logprob"] for a in done if a["mean_logprob"] is not None),
        "repetition": _mean(answer["repetition"] for answer in done),
        "json": _mean(float(answer["is_json"]) for answer in done),
        "different": len({answer["text"] for answer in done}),
        "ended": _mean(float(answer["finish_reason"] != "length") for answer in done),
    }


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return mean(found) if found else None
