"""`--dry-run`: the jobs that would be submitted, and the first prompt exactly as the model will see it."""

from __future__ import annotations

from datetime import UTC, datetime

from producer.console import stdout
from producer.model_files.chat_template import ChatRefused, render_chat
from producer.model_files.folder import model_files
from producer.model_files.generation_defaults import defaults_text
from producer.prompts.job_drafts import JobDraft, Submission
from producer.prompts.validation import ValidationReport
from producer.render import to_json, visible

CHARACTERS_PER_TOKEN = 4  # of English text, for a model without a tokenizer file


def show_dry_run(submission: Submission, report: ValidationReport, *, as_json: bool) -> None:
    """Prints the report with the first prompt. Writes nothing and starts nothing."""
    assert report.first is not None
    text = prompt_text(submission.model, report.first)
    num_tokens, is_counted = _prompt_tokens(submission.model, text, report)
    if as_json:
        found = {
            "model": submission.model,
            "lines": report.num_lines,
            "jobs": report.num_jobs,
            "jobs_of_strategy": report.jobs_of_strategy,
            "grid": submission.grid.values,
            "repeat": submission.grid.repeat,
            "prompt_tokens": num_tokens,
            "max_new_tokens": report.num_new_tokens,
            "model_defaults": submission.model_defaults and submission.model_defaults.stored,
            "first": {"custom_id": report.first.custom_id, "prompt": text},
        }
        print(to_json(found))  # noqa: T201
        return
    _print_jobs(submission, report)
    about = "" if is_counted else f", {CHARACTERS_PER_TOKEN} characters taken as one"
    stdout.print(f"about {num_tokens:,} prompt tokens{about}, at most {report.num_new_tokens:,} new ones")
    stdout.print(f"the first prompt ({visible(report.first.custom_id)}):", markup=False)
    stdout.print(visible(text), markup=False)


def _print_jobs(submission: Submission, report: ValidationReport) -> None:
    """Prints the number of jobs and the grid that makes them."""
    strategies = ", ".join(f"{count:,} {name}" for name, count in sorted(report.jobs_of_strategy.items()))
    stdout.print(f"{report.num_jobs:,} jobs from {report.num_lines:,} lines for {submission.model}: {strategies}")
    for name, values in submission.grid.values.items():
        if len(values) > 1:
            stdout.print(f"grid: {name} {', '.join(map(str, values))}", markup=False)
    if submission.grid.repeat > 1:
        stdout.print(f"grid: each {submission.grid.repeat} times")
    if submission.model_defaults is not None:
        stdout.print(f"the model's defaults: {defaults_text(submission.model_defaults)}", markup=False)


def prompt_text(model: str, draft: JobDraft) -> str:
    """The text that is tokenized; a conversation's plain messages for a model without a chat template."""
    if draft.prompt is not None:
        return draft.prompt
    messages = draft.messages or []
    plain = "\n".join(f"{m['role']}: {m['content']}" for m in messages)
    if (files := model_files(model)) is None:
        return plain
    try:
        return render_chat(files, messages, created_at=datetime.now(UTC))
    except ChatRefused:
        return plain  # the worker reports why it refuses the conversation


def _prompt_tokens(model: str, first: str, report: ValidationReport) -> tuple[int, bool]:
    """The tokens of all prompts by the first one's ratio of characters to tokens; and whether that was counted."""
    files = model_files(model)
    if files is None or files.tokenizer is None or not first:
        return report.num_characters // CHARACTERS_PER_TOKEN, False
    per_character = len(files.tokenizer.encode(first).ids) / len(first)
    return round(report.num_characters * per_character), True
