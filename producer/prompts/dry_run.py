"""`--dry-run`: what would be submitted, and the first prompt exactly as the model will see it."""

from __future__ import annotations

from pathlib import Path

from producer.console import stdout
from producer.prompts.chat_template import render_chat
from producer.prompts.job_drafts import JobDraft, Submission
from producer.prompts.validation import Checked
from producer.render import to_json, visible

CHARACTERS_PER_TOKEN = 4  # of English text, where no tokenizer is at hand


def show_dry_run(submission: Submission, checked: Checked, *, as_json: bool) -> int:
    """Prints it; returns the exit code. Nothing is written and nothing is started."""
    assert checked.first is not None
    text = prompt_text(submission.model, checked.first)
    num_tokens, is_counted = _prompt_tokens(submission.model, text, checked)
    if as_json:
        found = {
            "model": submission.model,
            "lines": checked.num_lines,
            "jobs": checked.num_jobs,
            "jobs_of_strategy": checked.jobs_of_strategy,
            "grid": submission.grid.values,
            "repeat": submission.grid.repeat,
            "prompt_tokens": num_tokens,
            "max_new_tokens": checked.num_new_tokens,
            "first": {"custom_id": checked.first.custom_id, "prompt": text},
        }
        print(to_json(found))  # noqa: T201
        return 0
    strategies = ", ".join(f"{count:,} {name}" for name, count in sorted(checked.jobs_of_strategy.items()))
    stdout.print(f"{checked.num_jobs:,} jobs from {checked.num_lines:,} lines for {submission.model}: {strategies}")
    for name, values in submission.grid.values.items():
        if len(values) > 1:
            stdout.print(f"grid: {name} {', '.join(map(str, values))}", markup=False)
    if submission.grid.repeat > 1:
        stdout.print(f"grid: each {submission.grid.repeat} times")
    about = "" if is_counted else f", {CHARACTERS_PER_TOKEN} characters taken as one"
    stdout.print(f"about {num_tokens:,} prompt tokens{about}, at most {checked.num_new_tokens:,} new ones")
    stdout.print(f"the first prompt ({visible(checked.first.custom_id)}):", markup=False)
    stdout.print(visible(text), markup=False)
    return 0


def prompt_text(model: str, draft: JobDraft) -> str:
    """The text that is tokenised; a conversation as it is written where no template is at hand."""
    if draft.prompt is not None:
        return draft.prompt
    messages = draft.messages or []
    rendered = render_chat(model, messages)
    return rendered if rendered is not None else "\n".join(f"{m['role']}: {m['content']}" for m in messages)


def _prompt_tokens(model: str, first: str, checked: Checked) -> tuple[int, bool]:
    """Tokens of all prompts, from the first one's ratio of characters to tokens; and whether one was counted."""
    file = Path(model) / "tokenizer.json"
    if not file.is_file() or not first:
        return checked.num_characters // CHARACTERS_PER_TOKEN, False
    from tokenizers import Tokenizer

    per_character = len(Tokenizer.from_file(str(file)).encode(first).ids) / len(first)
    return round(checked.num_characters * per_character), True
