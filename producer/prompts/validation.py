"""The pass over the whole file before anything is written: every error is counted, the first ones are shown."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TextIO

from producer.errors import InvalidInput, UsageError
from producer.prompts.duplicate_ids import CustomIds
from producer.prompts.job_drafts import JobDraft, Line, Submission, read_lines

MAX_ERRORS_SHOWN = 20
MAX_GRID_JOBS = 1_000_000


@dataclass
class Checked:
    """What validation found."""

    num_lines: int = 0  # valid ones
    num_jobs: int = 0
    num_invalid: int = 0  # lines that are left out
    num_characters: int = 0  # of all jobs' prompts
    num_new_tokens: int = 0  # at most, over all sequences
    jobs_of_strategy: Counter[str] = field(default_factory=Counter)
    first: JobDraft | None = None
    content_hash: str = ""
    repeated: frozenset[int] = frozenset()  # hashes of custom ids that come twice
    warnings: dict[str, str] = field(default_factory=dict)


def check(submission: Submission, *, skip_invalid: bool = False, allow_many: bool = False) -> Checked:
    """Reads the whole file. Raises `InvalidInput` with its first errors, `UsageError` where it cannot be read.

    With `skip_invalid` bad lines are only counted, for `write_invalid`. A grid of more than a million jobs needs
    `allow_many`.
    """
    submission.grid.check_values()
    ids = CustomIds()
    checked, errors = _pass(submission, frozenset(), ids, allow_many=allow_many)
    if repeated := ids.repeated():
        checked, errors = _pass(submission, repeated, ids, allow_many=allow_many)
    if checked.num_invalid and not (skip_invalid and checked.num_jobs):
        more = f"\n… and {checked.num_invalid - len(errors):,} more" if checked.num_invalid > len(errors) else ""
        count = "1 error" if checked.num_invalid == 1 else f"{checked.num_invalid:,} errors"
        hint = "" if skip_invalid else f"; --skip-invalid submits the other {checked.num_jobs:,} jobs"
        hint = hint if checked.num_jobs else ""
        raise InvalidInput("\n".join(errors) + f"{more}\n{count}; nothing was submitted{hint}")
    if not checked.num_jobs:
        raise InvalidInput(f"{submission.shown_path} has no prompts; give one JSON object per line")
    submission.grid.check_all_used()
    return checked


def invalid_path(submission: Submission) -> Path:
    """Where `--skip-invalid` puts what it left out: beside the file, or here for stdin."""
    return Path("stdin.invalid.jsonl") if submission.source is not None else submission.path.with_name(
        submission.path.name + ".invalid.jsonl"
    )  # fmt: skip


def write_invalid(submission: Submission, checked: Checked) -> Path:
    """Writes the bad lines with their errors; returns where. Raises `UsageError`."""
    path = invalid_path(submission)
    try:
        with path.open("w", encoding="utf-8") as file:
            for line in read_lines(submission, checked.repeated, {}):
                if line.error is not None:
                    _write_invalid_line(file, line)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    return path


def _write_invalid_line(file: TextIO, line: Line) -> None:
    record = {"line": line.number, "error": str(line.error), "text": line.raw}
    file.write(json.dumps(record) + "\n")


def _pass(
    submission: Submission, repeated: frozenset[int], ids: CustomIds, *, allow_many: bool
) -> tuple[Checked, list[str]]:
    checked = Checked(repeated=repeated)
    errors: list[str] = []
    digest = blake2b(f"{submission.model}\n{submission.seed}\n".encode(), digest_size=16)
    for line in read_lines(submission, repeated, checked.warnings):
        if line.error is not None:
            checked.num_invalid += 1
            if len(errors) < MAX_ERRORS_SHOWN:
                errors.append(f"{submission.shown_path}:{line.number}: {line.error}")
            continue
        checked.num_lines += 1
        for draft in line.drafts:
            _count(checked, draft)
            digest.update(_content(draft))
            if not repeated:
                ids.add(draft.custom_id)
        if submission.grid.is_varied and checked.num_jobs > MAX_GRID_JOBS and not allow_many:
            raise UsageError(
                f"the grid makes more than {MAX_GRID_JOBS:,} jobs (so many by line {line.number}); "
                "make it smaller, or give --yes"
            )
    checked.content_hash = digest.hexdigest()
    return checked, errors


def _count(checked: Checked, draft: JobDraft) -> None:
    checked.first = checked.first or draft
    checked.num_jobs += 1
    checked.jobs_of_strategy[draft.params.strategy] += 1
    checked.num_new_tokens += draft.params.num_sequences * draft.params.max_new_tokens
    texts = [draft.prompt] if draft.prompt is not None else [message["content"] for message in draft.messages or []]
    checked.num_characters += sum(map(len, filter(None, texts)))


def _content(draft: JobDraft) -> bytes:
    parts = [draft.custom_id, draft.prompt, draft.messages, draft.params.stored_json, draft.priority]
    return json.dumps(parts, sort_keys=True).encode()
