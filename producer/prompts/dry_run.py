"""`--dry-run`: the jobs that would be submitted, and the first prompt exactly as the model will see it."""

from __future__ import annotations

from dataclasses import dataclass

from models.chat import ChatInputs
from producer.console import print_data, stdout
from producer.model_files.folder import ModelFiles, model_files
from producer.model_files.generation_defaults import defaults_text
from producer.model_files.tokenizer_calls import TokenizerFailed, tokenizer_call
from producer.prompts.job_drafts import JobDraft, Submission
from producer.prompts.prompt_check import PromptCheck
from producer.prompts.validation import ValidationReport
from producer.render import to_json, visible

CHARACTERS_PER_TOKEN = 4  # of English text, for a model without a tokenizer file


@dataclass(frozen=True)
class SeenPrompt:
    """A prompt as the model sees it."""

    text: str  # with the special tokens that the tokenizer adds
    num_tokens: int | None = None
    doubt: str | None = None  # set: the text is what the line has, and this is why the model may see another


def show_dry_run(submission: Submission, report: ValidationReport, *, as_json: bool) -> None:
    """Prints the report with the first prompt. Writes nothing and starts nothing."""
    assert report.first is not None
    seen = seen_prompt(submission.model, report.first)
    num_tokens, is_counted = _prompt_tokens(seen, report)
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
            "first": {"custom_id": report.first.custom_id, "prompt": seen.text, "doubt": seen.doubt},
        }
        print_data(to_json(found))
        return
    _print_jobs(submission, report)
    about = "" if is_counted else f", {CHARACTERS_PER_TOKEN} characters taken as one"
    stdout.print(f"about {num_tokens:,} prompt tokens{about}, at most {report.num_new_tokens:,} new ones")
    as_seen = "as the model will see it" if seen.doubt is None else f"as the line has it: {seen.doubt}"
    stdout.print(f"the first prompt ({visible(report.first.custom_id)}), {as_seen}:")
    stdout.print(visible(seen.text))


def _print_jobs(submission: Submission, report: ValidationReport) -> None:
    """Prints the number of jobs and the grid that makes them."""
    strategies = ", ".join(f"{count:,} {name}" for name, count in sorted(report.jobs_of_strategy.items()))
    stdout.print(f"{report.num_jobs:,} jobs from {report.num_lines:,} lines for {submission.model}: {strategies}")
    for name, values in submission.grid.values.items():
        if len(values) > 1:
            stdout.print(f"grid: {name} {', '.join(map(str, values))}")
    if submission.grid.repeat > 1:
        stdout.print(f"grid: each {submission.grid.repeat} times")
    if submission.model_defaults is not None:
        stdout.print(f"the model's defaults: {defaults_text(submission.model_defaults)}")


def seen_prompt(model: str, draft: JobDraft) -> SeenPrompt:
    """The draft's prompt, rendered and with added special tokens, as far as the model's files are here."""
    if (files := model_files(model)) is None:
        return SeenPrompt(_plain(draft), doubt=f"the files of {model} are not at hand here")
    if draft.messages is None:
        assert draft.prompt is not None
        return _tokenized(files, draft.prompt, is_chat=False)
    inputs = ChatInputs.model_validate(draft.chat or {})
    return _tokenized(files, PromptCheck(files).text(draft.messages, inputs), is_chat=True)


def _plain(draft: JobDraft) -> str:
    if draft.prompt is not None:
        return draft.prompt
    return "\n".join(f"{message['role']}: {message.get('content')}" for message in draft.messages or [])


def _tokenized(files: ModelFiles, text: str, *, is_chat: bool) -> SeenPrompt:
    """The text with the special tokens that the tokenizer writes before and behind a prompt; a chat has its own."""
    if (tokenizer := files.tokenizer) is None:
        return SeenPrompt(text, doubt="the model has no tokenizer.json, which says what is added to it")
    try:
        with tokenizer_call():
            ids, encoded = tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.encode(text)
    except TokenizerFailed as failed:
        return SeenPrompt(text, doubt=f"the tokenizer refuses it: {failed}")
    if is_chat:
        return SeenPrompt(text, len(ids))
    added = [token for token, is_added in zip(encoded.tokens, encoded.special_tokens_mask, strict=True) if is_added]
    num_before = next((n for n, is_added in enumerate(encoded.special_tokens_mask) if not is_added), len(added))
    if ids[:num_before] == encoded.ids[:num_before]:  # the prompt has them already, and they are not doubled
        return SeenPrompt(text + "".join(added[num_before:]), len(encoded.ids) - num_before)
    return SeenPrompt("".join(added[:num_before]) + text + "".join(added[num_before:]), len(encoded.ids))


def _prompt_tokens(seen: SeenPrompt, report: ValidationReport) -> tuple[int, bool]:
    """The tokens of all prompts by the first one's ratio of characters to tokens; and whether that was counted."""
    if seen.num_tokens is None or not seen.text:
        return report.num_characters // CHARACTERS_PER_TOKEN, False
    return round(report.num_characters * seen.num_tokens / len(seen.text)), True
