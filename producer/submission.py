"""From a prompt file to job rows: everything is validated first, then written in one transaction."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, insert, select

from models.job import Job
from models.params import MAX_SEED, GenerationParams
from models.run import Run
from models.settings import DEFAULT_PRIORITY
from models.states import JobState, RunState
from producer.errors import InvalidInput
from producer.grid import Grid, InvalidParameters, label, validate
from producer.prompts import LineError, PromptLine, misspelt_parameter, read_prompts

MAX_ERRORS_SHOWN = 20
ROWS_PER_INSERT = 2_000


@dataclass(frozen=True)
class JobDraft:
    """A job as it will be written, but for the run and the derived seed."""

    custom_id: str
    prompt: str | None
    messages: list[dict[str, Any]] | None
    params: GenerationParams
    priority: int
    metadata: dict[str, Any]
    grid_point: dict[str, Any] | None


@dataclass(frozen=True)
class Submission:
    """What a command submits."""

    path: Path
    model: str
    grid: Grid
    priority: int = DEFAULT_PRIORITY
    name: str | None = None
    seed: int | None = None  # the run's; None draws one


@dataclass
class Checked:
    """What validation found: how many jobs, their hash, and warnings worth showing."""

    num_jobs: int = 0
    content_hash: str = ""
    warnings: dict[str, str] = field(default_factory=dict)


def check(submission: Submission) -> Checked:
    """Reads the whole file once. Raises `InvalidInput` with its first errors, `UsageError` where it cannot be read."""
    submission.grid.check_values()
    checked, num_errors = Checked(), 0
    errors: list[str] = []
    digest = blake2b(f"{submission.model}\n{submission.seed}\n".encode(), digest_size=16)
    first_line_of: dict[bytes, int] = {}
    for number, draft in _drafts(submission, checked.warnings):
        problem = draft if isinstance(draft, LineError) else _duplicate(draft, number, first_line_of)
        if problem is not None:
            num_errors += 1
            if len(errors) < MAX_ERRORS_SHOWN:
                errors.append(f"{submission.path}:{number}: {problem}")
            continue
        assert isinstance(draft, JobDraft)
        checked.num_jobs += 1
        digest.update(_content(draft))
    if num_errors:
        more = f"\n… and {num_errors - len(errors)} more" if num_errors > len(errors) else ""
        raise InvalidInput("\n".join(errors) + f"{more}\n{_count(num_errors)}; nothing was submitted")
    if not checked.num_jobs:
        raise InvalidInput(f"{submission.path} has no prompts; give one JSON object per line")
    submission.grid.check_all_used()
    checked.content_hash = digest.hexdigest()
    return checked


def write(submission: Submission, checked: Checked, database: Engine) -> str:
    """Writes the run and all its jobs in one transaction; returns the run's id. Their messages come after."""
    moment = datetime.now(UTC)
    run_id = f"{moment:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    run_seed = submission.seed if submission.seed is not None else secrets.randbelow(2**31)
    drafts = (draft for _, draft in _drafts(submission, {}) if isinstance(draft, JobDraft))
    with database.begin() as connection:
        connection.execute(
            insert(Run).values(
                id=run_id,
                name=submission.name,
                model=submission.model,
                state=RunState.RUNNING,
                created_at=moment,
                source=str(submission.path),
                content_hash=checked.content_hash,
                seed=run_seed,
                num_jobs=checked.num_jobs,
            )
        )
        while rows := [_row(draft, run_id, run_seed, moment) for draft in islice(drafts, ROWS_PER_INSERT)]:
            connection.execute(insert(Job), rows)
    return run_id


def find_unfinished(database: Engine, content_hash: str) -> Run | None:
    """The newest run with the same content that still has something to do."""
    statement = (
        select(Run)
        .where(Run.content_hash == content_hash, Run.state != RunState.FINISHED)
        .order_by(Run.created_at.desc())
        .limit(1)
    )
    with database.begin() as connection:
        row = connection.execute(statement).first()
    return None if row is None else Run(**row._mapping)


def derived_seed(run_seed: int, custom_id: str) -> int:
    """The seed of a job that names none: a hash of its run's seed and its custom id."""
    digest = blake2b(custom_id.encode(), digest_size=8, key=run_seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") & MAX_SEED


def _count(num_errors: int) -> str:
    return "1 error" if num_errors == 1 else f"{num_errors:,} errors"


def _drafts(submission: Submission, warnings: dict[str, str]) -> Iterator[tuple[int, JobDraft | LineError]]:
    """Every job of every line with its line number."""
    for line in read_prompts(submission.path):
        if isinstance(line, LineError):
            yield line.number, line
            continue
        for name in line.metadata:
            if name not in warnings and (meant := misspelt_parameter(name)) is not None:
                warnings[name] = f"{submission.path}:{line.number}: {name} is kept as metadata; did you mean {meant}?"
        try:
            for params, varied in submission.grid.points(line.params):
                yield line.number, _draft(line, validate(params), varied, submission)
        except InvalidParameters as error:
            yield line.number, LineError(line.number, error.field, error.problem)


def _draft(line: PromptLine, params: GenerationParams, varied: dict[str, Any], submission: Submission) -> JobDraft:
    return JobDraft(
        custom_id=f"{line.custom_id}#{label(varied)}" if varied else line.custom_id,
        prompt=line.prompt,
        messages=line.messages,
        params=params,
        priority=submission.priority if line.priority is None else line.priority,
        metadata=line.metadata,
        grid_point=varied or None,
    )


def _duplicate(draft: JobDraft, number: int, first_line_of: dict[bytes, int]) -> LineError | None:
    key = blake2b(draft.custom_id.encode(), digest_size=12).digest()  # ids may be long, and there may be millions
    first = first_line_of.setdefault(key, number)
    if first == number:
        return None
    return LineError(number, "custom_id", f"{draft.custom_id!r} was already used in line {first}; make it unique")


def _content(draft: JobDraft) -> bytes:
    parts = [draft.custom_id, draft.prompt, draft.messages, draft.params.stored(), draft.priority]
    return json.dumps(parts, sort_keys=True).encode()


def _row(draft: JobDraft, run_id: str, run_seed: int, moment: datetime) -> dict[str, Any]:
    seed = draft.params.seed
    return {
        "run_id": run_id,
        "custom_id": draft.custom_id,
        "prompt": draft.prompt,
        "messages": draft.messages,
        "strategy": draft.params.strategy,
        "params": draft.params.stored(),
        "seed": derived_seed(run_seed, draft.custom_id) if seed is None else seed,
        "priority": draft.priority,
        "state": JobState.QUEUED,
        "metadata": draft.metadata or None,
        "grid_point": draft.grid_point,
        "created_at": moment,
    }
