"""Prompt lines and the command's grid as job drafts: the last step before a database, of which it knows nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

from models.chat import keyed_messages
from models.model_defaults import ModelDefaults
from models.params import MAX_SEED, GenerationParams
from models.states import DEFAULT_PRIORITY
from producer.errors import LineProblem
from producer.model_files.generation_defaults import defaults_of_job
from producer.prompts.asked_models import AskedModels
from producer.prompts.conversations import ChatOptions
from producer.prompts.duplicate_ids import FirstUses
from producer.prompts.escapes import line_remarks, option_remarks, remark_of_format
from producer.prompts.foreign_fields import remark
from producer.prompts.grid import Grid, label, validate
from producer.prompts.lines import PromptLine, prompt_line
from producer.prompts.prompt_check import PromptCheck
from producer.prompts.readers.record import OWN_FIELDS
from producer.prompts.readers.source_file import FileState
from producer.prompts.records import ReaderOptions, Record, format_of, read_records


@dataclass(frozen=True)
class Submission:
    """A file with all that the command says of it."""

    path: Path
    model: str
    grid: Grid
    priority: int = DEFAULT_PRIORITY
    name: str | None = None
    seed: int | None = None  # the run's; None draws one
    reader: ReaderOptions = ReaderOptions()
    source: str | None = None  # the path's name in messages; None: itself
    model_defaults: ModelDefaults | None = None  # the model's own, stored with each job that does not override them
    chat: ChatOptions = ChatOptions()
    keep_prompts: bool = False
    file_state: FileState | None = None  # before its first pass; None: not looked at
    prompt_check: PromptCheck | None = None  # None: the model's files are not at hand

    @property
    def shown_path(self) -> str:
        return self.source or str(self.path)

    @cached_property
    def format(self) -> str:
        return format_of(self.path, self.reader)

    @property
    def is_table(self) -> bool:
        """Whether the file has cells or plain lines, which know no escapes."""
        return self.format != "jsonl"


@dataclass(frozen=True)
class JobDraft:
    """A job without its run and its derived seed."""

    custom_id: str
    prompt: str | None
    messages: list[dict[str, Any]] | None
    params: GenerationParams
    priority: int
    metadata: dict[str, Any]
    grid_point: dict[str, Any] | None
    chat: dict[str, Any] | None = None  # ChatInputs.stored

    def seed(self, run_seed: int) -> int:
        """The seed that the job names, or the one derived from its run's."""
        given = self.params.seed
        return derived_seed(run_seed, self.custom_id) if given is None else given

    def stored_params(self, defaults: ModelDefaults | None) -> str:
        """The parameters of its row, as JSON text, with the model's defaults that it does not override."""
        if defaults is None:
            return self.params.stored_json
        given = {name for name in self.params.model_fields_set if getattr(self.params, name) is not None}
        own = defaults_of_job(defaults, given).stored
        return self.params.stored_json if own is None else json.dumps({**self.params.stored, "model_defaults": own})

    def content_key(self, model: str, seed: int) -> str:
        """A hash of all that decides the answer: jobs with the same key have the same answer."""
        content: list[Any] = [model, self.prompt, keyed_messages(self.messages), self.params.keyed_json, seed]
        content += [] if self.chat is None else [self.chat]
        return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass
class Line:
    """One line of the file with its jobs, or with what is wrong with it."""

    number: int
    shown_number: str  # with its place among several records of the line
    raw: str
    drafts: list[JobDraft] = field(default_factory=list)
    problem: LineProblem | None = None  # set: the line has no jobs
    last_number: int = 0  # of its last physical line


def read_lines(submission: Submission, duplicate_hashes: frozenset[int], warnings: dict[str, str]) -> Iterator[Line]:
    """Every line with its jobs; one bad job spoils its line. Adds to `warnings`, by metadata field."""
    first_uses, asked_models = FirstUses(duplicate_hashes), AskedModels(submission.model)
    stop = submission.grid.values.get("stop", [[]])[0]
    for option, problem in option_remarks(submission.reader.template, stop).items():
        warnings.setdefault(option, f"{option} {problem}")
    for record in read_records(submission.path, submission.reader):
        line = Line(record.number, record.shown_number, record.raw, last_number=record.last_number)
        try:
            line.drafts = _drafts(submission, record, first_uses, warnings)
            asked_models.add(record.asked_model)
        except LineProblem as problem:
            line.problem = problem
        yield line
    if (warning := asked_models.warning()) is not None:
        warnings["body.model"] = f"{submission.shown_path}: {warning}"


def _drafts(submission: Submission, record: Record, first_uses: FirstUses, warnings: dict[str, str]) -> list[JobDraft]:
    line = prompt_line(record, submission.chat)
    if submission.prompt_check is not None:
        submission.prompt_check.check(record.name, line.prompt, line.messages, line.chat)
    _warn(submission, record, line, warnings)
    drafts = []
    for params, varied in submission.grid.points(line.params, line.default_strategy):
        kept = {"keep_prompt": True} if submission.keep_prompts else {}
        draft = _draft(line, validate(params | kept), varied, submission)
        if (first := first_uses.first_line(draft.custom_id, record.shown_number)) is not None:
            raise LineProblem("custom_id", f"{draft.custom_id!r} was already used in line {first}; make it unique")
        drafts.append(draft)
    return drafts


def derived_seed(run_seed: int, custom_id: str) -> int:
    """The seed of a job that names none: a hash of its run's seed and its custom id."""
    digest = blake2b(custom_id.encode(), digest_size=8, key=run_seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") & MAX_SEED


def _warn(submission: Submission, record: Record, line: PromptLine, warnings: dict[str, str]) -> None:
    """Warns once about each field that looks like a parameter and that the options do not name as data."""
    place = f"{submission.shown_path}:{record.shown_number}"
    for name, value in line.metadata.items():
        if name in warnings or name in submission.reader.data_fields or name in OWN_FIELDS:
            continue
        if (problem := remark(name, value)) is not None:
            warnings[name] = f"{place}: {name} {problem}"
    _warn_of_template(submission, line, warnings)
    is_plain = submission.is_table and "--template" not in warnings
    is_tsv = submission.format == "tsv"
    escapes = line_remarks(line.prompt, line.params.get("stop"), is_table=is_plain, is_tsv=is_tsv)
    if line.prompt is not None and (misread := _misread(submission, line.prompt, line.metadata)) is not None:
        escapes["prompt"] = misread
    for name, problem in {**line.remarks, **escapes}.items():
        warnings.setdefault(name, f"{place}: {name} {problem}")
    if submission.prompt_check is not None and line.messages is not None:
        for name, problem in submission.prompt_check.remarks(record.name, line.chat).items():
            warnings.setdefault(name, f"{place}: {problem}")


def _misread(submission: Submission, prompt: str, metadata: dict[str, Any]) -> str | None:
    """The warning about a text that is not a prompt, or one in another encoding."""
    reader = submission.reader
    is_column = submission.format in ("csv", "tsv") and reader.template is None and not metadata
    if is_column and prompt == (reader.prompt_column or "prompt"):
        return "is the name of its column: files that are put together repeat the header"
    return remark_of_format(prompt, submission.format, reader.encoding or "utf-8")


def _warn_of_template(submission: Submission, line: PromptLine, warnings: dict[str, str]) -> None:
    """Warns once about a template that prints a column's name in braces instead of the column, or no column at all."""
    template = submission.reader.prompt_template
    if template is None or "--template" in warnings:
        return
    if literal := sorted(template.literal_names & line.metadata.keys()):
        name = literal[0]
        warnings["--template"] = (
            f"--template prints {{{name}}} as it stands; write {{{{ {name} }}}}, or all of it in single braces"
        )
    elif not template.names and not template.uses_row:
        warnings["--template"] = "--template names no column: every line has the same prompt"


def _draft(line: PromptLine, params: GenerationParams, varied: dict[str, Any], submission: Submission) -> JobDraft:
    return JobDraft(
        custom_id=f"{line.custom_id}#{label(varied)}" if varied else line.custom_id,
        prompt=line.prompt,
        messages=line.messages,
        params=params,
        priority=submission.priority if line.priority is None else line.priority,
        metadata=line.metadata,
        grid_point=varied or None,
        chat=line.chat.stored,
    )
