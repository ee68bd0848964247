"""`producer show`: one job with its tokens, colored by their probability, and its beams as a tree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.text import Text
from rich.tree import Tree

from models.chat import content_text
from models.settings import Settings
from models.states import Strategy
from producer.console import print_data, stdout
from producer.render import table, to_json, visible
from producer.results.beam_tree import beam_tree
from producer.results.database import reading
from producer.results.queries import find_job, find_run, job_results

#: The least probability of each color, the most probable first.
COLORS = ((0.9, "green"), (0.5, "cyan"), (0.1, "yellow"), (0.01, "magenta"), (0.0, "red"))


def show_job(settings: Settings, reference: str, custom_id: str, *, with_alternatives: bool, as_json: bool) -> None:
    """Prints the job. Raises `UsageError`."""
    with reading(settings) as database:
        job = find_job(database, find_run(database, reference), custom_id)
        _show_job(job, job_results(database, job["id"]), with_alternatives=with_alternatives, as_json=as_json)


def _show_job(
    job: dict[str, Any],
    results: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]],
    *,
    with_alternatives: bool,
    as_json: bool,
) -> None:
    if as_json:
        print_data(to_json({**job, "results": [{**result, "tokens": tokens} for result, tokens in results]}))
        return
    _show_head(job)
    for result, tokens in results:
        _show_result(result, tokens, with_alternatives=with_alternatives)


def color_of(logprob: float) -> str:
    """The color of a token of this log-probability; empty for NaN, which another program may have written."""
    probability = _probability(logprob)
    return "" if probability is None else next(color for least, color in COLORS if probability >= least)


def _probability(logprob: float) -> float | None:
    return None if math.isnan(logprob) else math.exp(min(logprob, 0.0))


def _show_head(job: dict[str, Any]) -> None:
    params = {name: value for name, value in job["params"].items() if value not in (None, [], False)}
    stdout.print(f"{visible(job['custom_id'])}: {job['state']}, attempt {job['attempts']}", style="bold")
    stdout.print(", ".join(f"{name}={value}" for name, value in params.items()), style="dim")
    stdout.print(Text(visible(_asked(job)), style="italic"))
    if job["error"]:
        stdout.print(Text(f"{job['error_code']}: {visible(job['error'])}", style="red"))
    legend = Text("probability: ")
    for least, color in COLORS:
        legend.append(f"≥ {least:g} ", style=color)
    stdout.print(legend)


def _asked(job: dict[str, Any]) -> str:
    """The prompt, or the texts of a chat's messages; a message that only calls tools has none."""
    if job["prompt"] is not None:
        return str(job["prompt"])
    return "\n".join(f"{message['role']}: {content_text(message.get('content'))}" for message in job["messages"])


def _show_result(result: dict[str, Any], tokens: list[dict[str, Any]], *, with_alternatives: bool) -> None:
    score = "" if result["score"] is None else f", score {result['score']:.4f}"
    stdout.rule(
        f"sample {result['sample_index']}: {result['completion_tokens']} tokens, {result['finish_reason']}, "
        f"logprob {result['cumulative_logprob']:.3f}{score}",
        align="left",
    )
    if not tokens:
        stdout.print(Text(visible(result["text"])))
        stdout.print("no trace was kept (trace=none, or pruned)", style="dim")
    text = Text()
    for token in tokens:
        text.append(visible(token["token"]), style=color_of(token["logprob"]))
    stdout.print(text)
    if with_alternatives and tokens:
        stdout.print(_token_table(tokens))
    if result["hypotheses"]:
        stdout.print(_beam_tree(result["hypotheses"], tokens))


def _token_table(tokens: list[dict[str, Any]]) -> Any:
    columns = ["position", "token", "probability", "rank", "entropy", "kept", "alternatives"]
    rows = []
    for token in tokens:
        others = [f"{other['token']!r} {_shown_probability(other['logprob'])}" for other in token["top_logprobs"] or []]
        rows.append((
            token["position"], repr(token["token"]), _probability(token["logprob"]), token["rank"], token["entropy"],
            token["kept"], "  ".join(others) or "not kept; submit with --top-logprobs",
        ))  # fmt: skip
    return table(columns, rows, whole=columns[:-1])


def _shown_probability(logprob: float) -> str:
    probability = _probability(logprob)
    return "–" if probability is None else f"{probability:.3f}"


def _beam_tree(hypotheses: list[dict[str, Any]], tokens: list[dict[str, Any]]) -> Tree:
    """The finished hypotheses as a tree of their common prefixes."""
    switches = [str(token["position"]) for before, token in zip(tokens, tokens[1:], strict=False)
                if token["beam"] != before["beam"]]  # fmt: skip
    title = f"{Strategy.BEAM}: {len(hypotheses)} finished hypotheses"
    if switches:
        title += f"; the best changed its beam at position {', '.join(switches[:12])}"
    return beam_tree(title, hypotheses)
