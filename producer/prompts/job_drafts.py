"""From prompt lines and the command's grid to jobs as they will be written, or what is wrong with each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from models.params import MAX_SEED, GenerationParams
from models.settings import DEFAULT_PRIORITY
from producer.prompts.duplicate_ids import FirstUses
from producer.prompts.grid import Grid, InvalidParameters, label, validate
from producer.prompts.lines import LineError, PromptLine, misspelt_parameter, read_prompts
from producer.prompts.records import ReaderOptions


@dataclass(frozen=True)
class Submission:
    """What a command submits."""

    path: Path
    model: str
    grid: Grid
    priority: int = DEFAULT_PRIORITY
    name: str | None = None
    seed: int | None = None  # the run's; None draws one
    reader: ReaderOptions = ReaderOptions()
    source: str | None = None  # what the path is called; None: itself

    @property
    def shown_path(self) -> str:
        return self.source or str(self.path)


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

    def seed(self, run_seed: int) -> int:
        """The seed it names, or the one derived from its run's."""
        given = self.params.seed
        return derived_seed(run_seed, self.custom_id) if given is None else given

    def content_key(self, model: str, seed: int) -> str:
        """A hash of all that decides its answer: jobs with the same key have the same answer."""
        content = [model, self.prompt, self.messages, self.params.stored_json, seed]
        return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass
class Line:
    """What became of one line: its jobs, or what is wrong with it."""

    number: int
    raw: str
    drafts: list[JobDraft] = field(default_factory=list)
    error: LineError | None = None


def read_lines(submission: Submission, duplicate_hashes: frozenset[int], warnings: dict[str, str]) -> Iterator[Line]:
    """Every line with its jobs. A line with one bad job has none; `duplicate_hashes` are of ids that come twice."""
    first_uses = FirstUses(duplicate_hashes)
    for line in read_prompts(submission.path, submission.reader):
        if isinstance(line, LineError):
            yield Line(line.number, line.raw, error=line)
            continue
        _warn(submission, line, warnings)
        read = Line(line.number, line.raw)
        try:
            for params, varied in submission.grid.points(line.params, line.default_strategy):
                draft = _draft(line, validate(params), varied, submission)
                if (first := first_uses.first_line(draft.custom_id, line.number)) is not None:
                    problem = f"{draft.custom_id!r} was already used in line {first}; make it unique"
                    raise InvalidParameters("custom_id", problem)
                read.drafts.append(draft)
        except InvalidParameters as error:
            read = Line(line.number, line.raw, error=LineError(line.number, error.field, error.problem, line.raw))
        yield read


def derived_seed(run_seed: int, custom_id: str) -> int:
    """The seed of a job that names none: a hash of its run's seed and its custom id."""
    digest = blake2b(custom_id.encode(), digest_size=8, key=run_seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") & MAX_SEED


def _warn(submission: Submission, line: PromptLine, warnings: dict[str, str]) -> None:
    for name in line.metadata:
        if name not in warnings and (meant := misspelt_parameter(name)) is not None:
            place = f"{submission.shown_path}:{line.number}"
            warnings[name] = f"{place}: {name} is kept as metadata; did you mean {meant}?"


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
