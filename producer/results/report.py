"""`producer report`: a self-contained page with the grid points of a run side by side.

Each answer is shown with its length, repetition, mean log-probability, whether it is JSON, and its shaded text.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from models.settings import Settings
from producer.atomic_file import atomic_file
from producer.console import say
from producer.results.database import check_reading_role, readable_database
from producer.results.queries import find_run, results, run_progress

Answers = list[dict[str, Any]]

MAX_PROMPTS = 200  # more than a person reads
MAX_TOKENS_COLOURED = 2_000  # per answer


def write_report(settings: Settings, reference: str | None, output: Path, *, as_superuser: bool) -> None:
    """Writes the page. Raises `UsageError`."""
    from jinja2 import Environment, PackageLoader

    database = readable_database(settings)
    check_reading_role(database, as_superuser=as_superuser)
    run_id = find_run(database, reference)
    grid_points, prompts, num_left_out = _collect(results(database, run_id, with_traces=True))
    environment = Environment(
        loader=PackageLoader("producer.results"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html").render(
        run=run_progress(database, run_id),
        grid_points=[_summary(name, answers) for name, answers in grid_points.items()],
        prompts=[{"text": text, "answers": answers} for text, answers in prompts.items()],
        num_left_out=num_left_out,
    )
    with atomic_file(output) as file:
        file.write(page)
    num_answers = sum(map(len, grid_points.values()))
    say(f"{output}: {num_answers:,} answers to {len(prompts):,} prompts, {len(grid_points)} grid points")


def _collect(rows: Iterable[dict[str, Any]]) -> tuple[dict[str, Answers], dict[str, Answers], int]:
    """The answers by grid point and by prompt; and the number of answers to prompts beyond `MAX_PROMPTS`."""
    grid_points: dict[str, Answers] = defaultdict(list)
    prompts: dict[str, Answers] = {}
    num_left_out = 0
    for row in rows:
        answer = _answer(row)
        grid_points[answer["grid_point"]].append(answer)
        asked = row["prompt"] or json.dumps(row["messages"], ensure_ascii=False, indent=1)
        if asked in prompts or len(prompts) < MAX_PROMPTS:
            prompts.setdefault(asked, []).append(answer)
        else:
            num_left_out += 1
    return grid_points, prompts, num_left_out


def repetition(text: str) -> float:
    """The share of word pairs that occurred before; 0 for a text without repetition."""
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
        "grid_point": _grid_point(row),
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


def _grid_point(row: dict[str, Any]) -> str:
    """The name of a grid point without its repetition number; the strategy alone without a grid."""
    point = {name: value for name, value in (row["grid_point"] or {}).items() if name not in ("repeat", "strategy")}
    return " ".join([row["strategy"], *(f"{name}={value}" for name, value in point.items())])


def _level(logprob: float) -> int:
    """The shade of a token: 0 for a nearly certain one, up to 4."""
    return sum(logprob < least for least in (-0.105, -0.693, -2.303, -4.605))


def _summary(name: str, answers: Answers) -> dict[str, Any]:
    done = [answer for answer in answers if answer["text"] is not None]
    return {
        "name": name,
        "count": len(answers),
        **{state: sum(answer["state"] == state for answer in answers) for state in ("failed", "cancelled", "expired")},
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
