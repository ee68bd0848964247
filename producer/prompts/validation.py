"""Validation: a pass over the whole file before anything is written. All errors are counted, the first are shown."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, TextIO

from models.chat import content_text, keyed_messages
from models.states import Strategy
from producer.atomic_file import atomic_file
from producer.errors import InvalidInput, UsageError
from producer.prompts.duplicate_ids import DuplicateFinder
from producer.prompts.job_drafts import JobDraft, Line, Submission, read_lines
from producer.prompts.records import read_records

MAX_ERRORS_SHOWN = 20

#: Formats without a header, and their records.
FORM_OF = {"jsonl": "one JSON object per line", "text": "one prompt per line"}
MAX_GRID_JOBS = 1_000_000


@dataclass
class ValidationReport:
    """The counts of a validated file, and its duplicates and warnings."""

    num_lines: int = 0  # valid lines
    num_jobs: int = 0
    num_invalid: int = 0  # lines left out
    num_chats: int = 0  # jobs with messages
    num_characters: int = 0  # of all jobs' prompts
    num_new_tokens: int = 0  # upper bound over all sequences
    jobs_of_strategy: Counter[str] = field(default_factory=Counter)
    first: JobDraft | None = None  # None: the file has no jobs
    content_hash: str = ""
    duplicate_hashes: frozenset[int] = frozenset()  # of custom ids that come twice
    warnings: dict[str, str] = field(default_factory=dict)  # by metadata field


def check(submission: Submission, *, skip_invalid: bool = False, allow_many: bool = False) -> ValidationReport:
    """Reads the whole file. Raises `InvalidInput` with its first errors, `UsageError` for an unreadable file.

    With `skip_invalid` bad lines are counted only; `write_invalid` writes them. A grid of more than a million jobs
    needs `allow_many`.
    """
    num_points = submission.grid.num_points
    if num_points > MAX_GRID_JOBS and not allow_many:
        raise _too_many(f"{num_points:,} of each line")
    submission.grid.check_values()
    if submission.grid.depends_on_lines:
        submission.grid.has_nucleus_lines = _has_nucleus(submission)
    ids = DuplicateFinder()
    report, errors = _pass(submission, frozenset(), ids, allow_many=allow_many)
    if submission.prompt_check is not None:
        submission.prompt_check.complete()
    if duplicate_hashes := ids.duplicate_hashes():
        report, errors = _pass(submission, duplicate_hashes, ids, allow_many=allow_many)
    if report.num_invalid and not (skip_invalid and report.num_jobs):
        more = f"\n… and {report.num_invalid - len(errors):,} more" if report.num_invalid > len(errors) else ""
        count = "1 error" if report.num_invalid == 1 else f"{report.num_invalid:,} errors"
        jobs = "1 job" if report.num_jobs == 1 else f"{report.num_jobs:,} jobs"
        hint = "" if skip_invalid else f"; --skip-invalid submits the other {jobs}"
        hint = hint if report.num_jobs else ""
        raise InvalidInput("\n".join(errors) + f"{more}\n{count}; nothing was submitted{hint}")
    if not report.num_jobs:
        form = FORM_OF.get(submission.format, "a row under the header")
        raise InvalidInput(f"{submission.shown_path} has no prompts; give {form}")
    submission.grid.check_all_used()
    if submission.chat.template_kwargs and not report.num_chats:
        raise UsageError("--chat-arg is for chats, and the file has plain prompts; add --chat or leave it out")
    return report


def invalid_path(submission: Submission) -> Path:
    """The file that `--skip-invalid` writes: beside the prompt file, in the working directory for stdin."""
    return Path("stdin.invalid.jsonl") if submission.source is not None else submission.path.with_name(
        submission.path.name + ".invalid.jsonl"
    )  # fmt: skip


def write_invalid(submission: Submission, report: ValidationReport) -> Path:
    """Writes the bad lines with their errors; returns the file. Raises `UsageError`."""
    path = invalid_path(submission)
    with atomic_file(path) as file:
        for line in read_lines(submission, report.duplicate_hashes, {}):
            if line.problem is not None:
                _write_invalid_line(file, line)
    return path


def _write_invalid_line(file: TextIO, line: Line) -> None:
    record = {"line": line.number, "last_line": line.last_number, "error": str(line.problem), "text": line.raw}
    file.write(json.dumps(record) + "\n")


def _has_nucleus(submission: Submission) -> bool:
    """Whether some line names the strategy nucleus."""
    records = read_records(submission.path, submission.reader)
    return any(record.fields.get("strategy") == Strategy.NUCLEUS for record in records)


def _pass(
    submission: Submission, duplicate_hashes: frozenset[int], ids: DuplicateFinder, *, allow_many: bool
) -> tuple[ValidationReport, list[str]]:
    report = ValidationReport(duplicate_hashes=duplicate_hashes)
    errors: list[str] = []
    digest = blake2b(f"{submission.model}\n{submission.seed}\n".encode(), digest_size=16)
    for line in read_lines(submission, duplicate_hashes, report.warnings):
        if line.problem is not None:
            report.num_invalid += 1
            if len(errors) < MAX_ERRORS_SHOWN:
                errors.append(f"{submission.shown_path}:{line.shown_number}: {line.problem}")
            continue
        report.num_lines += 1
        for draft in line.drafts:
            _count(report, draft)
            digest.update(_content(draft))
            if not duplicate_hashes:
                ids.add(draft.custom_id)
        if submission.grid.is_varied and report.num_jobs > MAX_GRID_JOBS and not allow_many:
            raise _too_many(f"so many by line {line.number}")
    report.content_hash = digest.hexdigest()
    return report, errors


def _too_many(how_many: str) -> UsageError:
    return UsageError(f"the grid makes more than {MAX_GRID_JOBS:,} jobs ({how_many}); make it smaller, or give --yes")


def _count(report: ValidationReport, draft: JobDraft) -> None:
    report.first = report.first or draft
    report.num_jobs += 1
    report.num_chats += draft.messages is not None
    report.jobs_of_strategy[draft.params.strategy] += 1
    report.num_new_tokens += draft.params.num_sequences * draft.params.max_new_tokens
    texts = [draft.prompt or "", *(content_text(message.get("content")) for message in draft.messages or [])]
    report.num_characters += sum(map(len, texts))


def _content(draft: JobDraft) -> bytes:
    parts: list[Any] = [
        draft.custom_id,
        draft.prompt,
        keyed_messages(draft.messages),
        draft.params.keyed_json,
        draft.priority,
    ]
    parts += [] if draft.chat is None else [draft.chat]
    return json.dumps(parts, sort_keys=True).encode()
