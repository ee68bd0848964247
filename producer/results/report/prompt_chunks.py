"""The second pass over a run: the shown prompts with their answers, in chunks that a page unfolds as it is scrolled.

A chunk is all that is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, column, select, table

from models.schema.result import Result
from models.states import Strategy
from producer.results.queries import decode_row, in_statements
from producer.results.report.job_settings import JobSettings
from producer.results.report.measures import asked, cut, is_json, repetition, rounded
from producer.results.report.shown_prompts import ShownPrompt
from producer.results.report.tokens.columns import Vocabulary, read_tokens

#: Jobs and tokens after which a chunk is complete.
JOBS_PER_CHUNK, TOKENS_PER_CHUNK = 150, 20_000

#: Tokens of a page whose tokens are all shown, and of one whose examples are.
FEW_TOKENS, MAX_TOKENS = 200_000, 300_000

VIEW_COLUMNS = (
    "job_id", "custom_id", "state", "strategy", "params", "grid_point", "seed", "sample_index", "result_id", "text",
    "finish_reason", "completion_tokens", "cumulative_logprob", "score", "error", "error_code", "metadata", "prompt",
    "messages", "chat",
)  # fmt: skip


@dataclass
class TokenBudget:
    """The number of tokens that may still be shown; None for all."""

    left: int | None

    def allows(self, count: int) -> bool:
        """Takes the tokens of an answer, if they fit."""
        if self.left is None:
            return True
        if count > self.left:
            return False
        self.left -= count
        return True


def token_budget(policy: str, num_tokens: int) -> TokenBudget:
    """The budget under `--tokens auto|all|none`; a page of few tokens shows them all."""
    if policy == "none":
        return TokenBudget(0)
    return TokenBudget(None if policy == "all" or num_tokens <= FEW_TOKENS else MAX_TOKENS)


def prompt_chunks(
    database: Engine, prompts: Sequence[ShownPrompt], settings: JobSettings, budget: TokenBudget
) -> Iterator[dict[str, Any]]:
    """Each chunk: the number of its first prompt, the texts of its tokens, and the prompts."""
    first = 0
    for batch in _batches(prompts):
        rows = _rows(database, [job_id for prompt in batch for job_id in prompt.job_ids])
        vocabulary = Vocabulary()
        tokens = read_tokens(database, _with_tokens(rows, budget), vocabulary)
        by_job: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            by_job.setdefault(row["job_id"], []).append(row)
        hypotheses = _hypotheses(database, rows)
        for row in rows:
            row["hypotheses"] = hypotheses.get(row["result_id"])
        described = [_prompt(prompt, by_job, settings, tokens) for prompt in batch]
        yield {"first": first, "texts": vocabulary.texts, "prompts": described}
        first += len(batch)


def _batches(prompts: Sequence[ShownPrompt]) -> Iterator[list[ShownPrompt]]:
    batch: list[ShownPrompt] = []
    num_jobs = num_tokens = 0
    for prompt in prompts:
        batch.append(prompt)
        num_jobs += len(prompt.job_ids)
        num_tokens += prompt.num_tokens
        if num_jobs >= JOBS_PER_CHUNK or num_tokens >= TOKENS_PER_CHUNK:
            yield batch
            batch, num_jobs, num_tokens = [], 0, 0
    if batch:
        yield batch


def _rows(database: Engine, job_ids: Sequence[int]) -> list[dict[str, Any]]:
    view = table("job_results", *map(column, VIEW_COLUMNS))
    found: list[dict[str, Any]] = []
    for begin in range(0, len(job_ids), JOBS_PER_CHUNK):
        ids = job_ids[begin : begin + JOBS_PER_CHUNK]
        statement = select(view).where(view.c.job_id.in_(ids)).order_by(view.c.job_id, view.c.sample_index)
        with database.connect() as connection:
            found += [decode_row(dict(row)) for row in connection.execute(statement).mappings()]
    return found


def _hypotheses(database: Engine, rows: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Result id -> the finished hypotheses of its beam search, the best first."""
    ids = [row["result_id"] for row in rows if row["strategy"] == Strategy.BEAM and row["sample_index"] == 0]
    found: dict[int, list[dict[str, Any]]] = {}
    statement = select(Result.id, Result.hypotheses).where(Result.hypotheses.is_not(None))
    for some in in_statements(ids):
        with database.connect() as connection:
            for result_id, hypotheses in connection.execute(statement.where(Result.id.in_(some))):
                found[result_id] = [_hypothesis(each) for each in hypotheses]
    return found


def _hypothesis(stored: dict[str, Any]) -> dict[str, Any]:
    """A hypothesis as a page has it; those of 0.1 have neither token ids nor their texts."""
    fields = {
        "text": cut(stored["text"]),
        "score": rounded(stored["score"], 5),
        "end": stored["finish_reason"],
        "length": stored["num_tokens"],
        "ids": stored.get("token_ids"),
        "texts": stored.get("tokens"),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _with_tokens(rows: Sequence[dict[str, Any]], budget: TokenBudget) -> list[int]:
    """The results whose tokens are shown: all, or the first of equal answers to a prompt, as far as they fit."""
    chosen, seen = [], set()
    for row in rows:
        if row["text"] is None:
            continue
        key = hash((str(asked(row)), row["text"]))
        if (budget.left is None or key not in seen) and budget.allows(row["completion_tokens"]):
            chosen.append(row["result_id"])
        seen.add(key)
    return chosen


def _prompt(
    prompt: ShownPrompt,
    rows_of_job: dict[int, list[dict[str, Any]]],
    settings: JobSettings,
    tokens: dict[int, dict[str, list[Any]]],
) -> dict[str, Any]:
    rows = [row for job_id in prompt.job_ids for row in rows_of_job.get(job_id, ())]
    asking = asked(rows[0]) if rows else ""
    numbers: dict[str, int] = {}  # a text of equal answers, whole -> the number of their group
    answers = []
    for row in rows:
        group = None if row["text"] is None else numbers.setdefault(row["text"], len(numbers))
        answers.append(_answer(row, group, settings.number_of(row), tokens.get(row["result_id"])))
    return {
        "ask": cut(asking) if isinstance(asking, str) else asking,
        "texts": [cut(text) for text in numbers],
        "json": [is_json(text) for text in numbers] if prompt.asks_for_json else None,
        "repetition": [round(repetition(text), 3) for text in numbers],
        "answers": answers,
    }


def _answer(
    row: dict[str, Any], group: int | None, setting: int, tokens: dict[str, list[Any]] | None
) -> dict[str, Any]:
    """An answer's fields; those without a value are left out."""
    length, logprob = row["completion_tokens"], row["cumulative_logprob"]
    fields = {
        "id": row["custom_id"],
        "s": setting,
        "n": row["sample_index"] or None,
        "g": group,
        "state": row["state"] if row["text"] is None else None,
        "error": cut(row["error"]) if row["error"] and row["text"] is None else None,
        "code": row["error_code"] if row["text"] is None else None,
        "end": row["finish_reason"],
        "len": length,
        "lp": rounded(logprob / length, 4) if length else None,
        "score": rounded(row["score"], 5),
        "seed": row["seed"],
        "meta": row["metadata"] or None,
        "tok": tokens,
        "hyp": row["hypotheses"] if row["text"] is not None else None,
    }
    return {name: value for name, value in fields.items() if value is not None}
