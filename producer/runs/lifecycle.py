"""`producer run`, `submit` and `resume`: the order of their steps, from options to the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from sys import stdin

from sqlalchemy import Engine

from models.settings import Settings
from producer.console import print_and_act, say
from producer.errors import UsageError
from producer.home import holder_of, home_options
from producer.model_files.folder import model_files
from producer.model_files.generation_defaults import model_defaults, recommended_sampling
from producer.options import InputOptions, OutputOptions, SubmitOptions
from producer.prompts.dry_run import show_dry_run
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import Submission
from producer.prompts.prompt_check import PromptCheck
from producer.prompts.readers.source_file import FileState, private_copy, readable_twice
from producer.prompts.validation import ValidationReport, check, write_invalid
from producer.render import to_json, visible
from producer.results.queries import PAUSED, RunProgress, find_run, run_progress
from producer.results.run_tables import paused_line
from producer.runs.broker import check_broker, send_run
from producer.runs.database import check_usable, existing_database, ready_database, writable_database
from producer.runs.decoding import EXIT_FAILED_JOBS, EXIT_OK, attach, decode, goes_on_line, show_end
from producer.runs.detached import decode_detached
from producer.runs.device_check import check_device
from producer.runs.embedded import LocalServices
from producer.runs.interruption import Interruption, run_interruptibly
from producer.runs.model_check import (
    check_model,
    check_submitted_model,
    check_worker_adapter,
    fetch_weights,
    small_files,
)
from producer.runs.writer import SubmitResult, bound, find_paused, find_unfinished, write


def run_here(
    settings: Settings,
    source: Path | Sequence[str],
    grid: Grid,
    submit_options: SubmitOptions,
    input_options: InputOptions,
    output_options: OutputOptions,
    *,
    is_detached: bool = False,
) -> int:
    """`producer run`: validates, starts what is needed, decodes, sums up; returns the exit code.

    `source` is a file, or prompts as they are.
    """

    output_options.check()

    def run(interruption: Interruption) -> int:
        with ExitStack() as stack:
            with interruption.at_once():
                given = stack.enter_context(_submission(settings, source, grid, submit_options, input_options))
                submission, report = _checked(settings, given, submit_options, input_options)
                if input_options.dry_run:
                    show_dry_run(submission, report, as_json=output_options.json)
                    return EXIT_OK
            chosen = settings.model_copy(update={"model": submission.model})
            if is_detached:
                return _run_detached(chosen, submission, report, submit_options, output_options, interruption)
            with LocalServices(chosen, interruption) as local:
                database, run_id = _stored_run(submission, report, chosen, submit_options, interruption)
                are_prompts = not isinstance(source, Path)
                return decode(local, database, run_id, output_options, chosen, prints_answers=are_prompts)

    return run_interruptibly(run)


def _checked(
    settings: Settings, submission: Submission, submit_options: SubmitOptions, input_options: InputOptions
) -> tuple[Submission, ValidationReport]:
    """Everything that a run needs, checked before anything is written. Raises `UsageError`."""
    check_device(settings.device)
    check_worker_adapter(settings.adapter)
    submission = _of_model(submission, check_model(settings.model), submit_options)
    submission = _with_prompt_check(submission, settings.max_model_len)
    report = _check(submission, input_options)
    if not input_options.dry_run:
        check_usable(settings)
        fetch_weights(submission.model)
    return submission, report


def _run_detached(
    settings: Settings,
    submission: Submission,
    report: ValidationReport,
    submit_options: SubmitOptions,
    output_options: OutputOptions,
    interruption: Interruption,
) -> int:
    """Writes the run and leaves it to a process in the background."""
    if settings.broker is not None:
        raise UsageError("--detach starts its own Redis; for a server's workers use `producer submit`")
    _, run_id = _stored_run(submission, report, settings, submit_options, interruption)
    return decode_detached(settings, run_id, output_options, interruption)


def submit_run(
    settings: Settings,
    file: Path,
    grid: Grid,
    submit_options: SubmitOptions,
    input_options: InputOptions,
    *,
    as_json: bool,
) -> int:
    """`producer submit`: validates, writes, prints the run's id, sends; returns the exit code."""
    with _submission(settings, file, grid, submit_options, input_options) as submission:
        model = check_submitted_model(settings.model, needs_files=not submit_options.ignore_model_defaults)
        submission = _with_prompt_check(_of_model(submission, model, submit_options))
        report = _check(submission, input_options)
        if input_options.dry_run:
            show_dry_run(submission, report, as_json=as_json)
            return EXIT_OK
        broker = _required_broker(settings)
        database = ready_database(settings)
        check_broker(broker)
        result = _write(submission, report, database, submit_options)
        if find_paused(database, submission) == result.run_id:
            say(paused_line(run_progress(database, result.run_id), settings))
    told = to_json({"id": result.run_id, "new": result.num_new, "already_there": result.num_known})
    # Before they are sent: the run is stored even if that fails.
    return print_and_act(told if as_json else result.run_id, lambda: send_jobs(settings, database, result.run_id))


def resume_run(settings: Settings, reference: str | None, output_options: OutputOptions) -> int:
    """`producer resume`: sends the unsent jobs with a broker, decodes the rest here without one."""
    check_resuming(settings, output_options)
    database = existing_database(settings)
    if settings.broker is not None:
        check_broker(settings.broker)
        named = None if reference is None else find_run(database, reference)
        if named is not None:
            _check_unpaused(run_progress(database, named), settings)
        return send_jobs(settings, database, named, as_json=output_options.json)
    run_id = find_run(database, reference)
    progress = run_progress(database, run_id)
    if progress.is_finished:
        say(f"run {run_id} is finished: nothing to resume")
        show_end(database, progress, replace(output_options, quiet=True), settings, is_short=True)
        return EXIT_OK
    _check_unpaused(progress, settings)
    check_device(settings.device)
    check_worker_adapter(settings.adapter)
    settings = settings.model_copy(update={"model": progress.model})

    def resume(interruption: Interruption) -> int:
        holder = holder_of(settings.home)
        if holder is not None and holder.run == run_id:
            return attach(database, run_id, holder, output_options, settings, interruption)
        interruption.outcome = f"run {run_id} stays as it is"
        with LocalServices(settings, interruption) as local:
            return decode(local, database, run_id, output_options, settings)

    return run_interruptibly(resume)


def check_resuming(settings: Settings, output_options: OutputOptions) -> None:
    """Raises `UsageError` for options that do not go with resuming, before anything is changed."""
    output_options.check()
    if settings.broker is not None and output_options.output is not None:
        raise UsageError("-o writes what is decoded here; with a broker use `producer results` when the run has ended")


def _check_unpaused(progress: RunProgress, settings: Settings) -> None:
    """Raises `UsageError` for a run that a person has paused: it would wait, and nobody could say for what."""
    if progress.state == PAUSED:
        raise UsageError(paused_line(progress, settings))


def _stored_run(
    submission: Submission,
    report: ValidationReport,
    settings: Settings,
    submit_options: SubmitOptions,
    interruption: Interruption,
) -> tuple[Engine, str]:
    """The database with the run in it, and the run's id. A signal ends it before the commit, or waits for that."""
    flags = home_options(settings)
    with interruption.at_once():
        database = writable_database(settings)
        run_id = _write_or_resume(submission, report, database, submit_options, flags, interruption.hold)
        interruption.outcome = goes_on_line(run_id, settings)
    return database, run_id


def _write_or_resume(
    submission: Submission,
    report: ValidationReport,
    database: Engine,
    submit_options: SubmitOptions,
    flags: str,
    before_commit: Callable[[], None],
) -> str:
    """The run's id: a new one, or the unfinished one with the same content. `flags` finds the home again."""
    unfinished = None
    if submit_options.on_duplicate == "skip":
        unfinished = find_unfinished(database, report.content_hash)
    if unfinished is None:
        paused = None if submit_options.on_duplicate == "rerun" else find_paused(database, submission)
        if paused is not None:
            raise UsageError(
                f"run {paused} has the same name and is paused; go on with: producer unpause {paused}{flags}"
            )
        run_id = _write(submission, report, database, submit_options, before_commit).run_id
    else:
        run_id = unfinished.id
        if unfinished.paused_at is not None:
            raise UsageError(
                f"run {run_id} has the same content and is paused; go on with: producer unpause {run_id}{flags}"
            )
        if submit_options.max_running is not None:
            bound(database, run_id, submit_options.max_running)
        done = run_progress(database, run_id).num_final
        say(f"going on with run {run_id}: {done:,} of {unfinished.num_jobs:,} jobs are done")
    return run_id


def _write(
    submission: Submission,
    report: ValidationReport,
    database: Engine,
    submit_options: SubmitOptions,
    before_commit: Callable[[], None] = lambda: None,
) -> SubmitResult:
    result = write(
        submission,
        report,
        database,
        expires_after=submit_options.expires_after(),
        on_duplicate=submit_options.on_duplicate,
        max_running=submit_options.max_running,
        before_commit=before_commit,
    )
    if result.num_known:
        say(f"run {result.run_id}: {result.num_known:,} already there, {result.num_new:,} new")
    return result


def send_jobs(settings: Settings, database: Engine, run_id: str | None, *, as_json: bool = False) -> int:
    """Sends the outbox; returns the exit code. A failure is reported with the command that resumes."""
    try:
        num_sent = send_run(settings, database, run_id)
    except ConnectionError as error:
        resume = " ".join(filter(None, ["producer resume", run_id]))
        say(f"error: the jobs are stored, but Redis does not take all of them: {error}; send the rest with: {resume}")
        return EXIT_FAILED_JOBS
    if as_json:
        print(to_json({"id": run_id, "sent": num_sent}))  # noqa: T201
    say(f"{num_sent:,} jobs sent" + (f" for run {run_id}" if run_id is not None else ""))
    return EXIT_OK


def _with_prompt_check(submission: Submission, max_model_len: int | None = None) -> Submission:
    """The submission with a check of each prompt against the model's small files, where they are at hand.

    `max_model_len` is that of the worker that is to start here.
    """
    files = model_files(submission.model)
    if files is None or not files.has_tokenizer_files:
        say(
            f"warning: the files of {submission.model} are not at hand: its workers find out whether chats and long "
            "prompts fit it"
        )
        return submission
    window = min(filter(None, (files.context_window, max_model_len)), default=None)
    return replace(submission, prompt_check=PromptCheck(files, context_window=window))


def _check(submission: Submission, input_options: InputOptions) -> ValidationReport:
    report = check(submission, skip_invalid=input_options.skip_invalid, allow_many=input_options.yes)
    for warning in report.warnings.values():
        say(f"warning: {visible(warning)}")
    if report.num_invalid and input_options.dry_run:
        say(f"{report.num_invalid:,} invalid lines would be left out")
    elif report.num_invalid:
        say(f"{report.num_invalid:,} invalid lines are left out; they are in {write_invalid(submission, report)}")
    return report


def _of_model(submission: Submission, model: str, submit_options: SubmitOptions) -> Submission:
    """The submission for a model, with the defaults and the strategy that its files name. Raises `UsageError`."""
    submission.grid.recommended = lambda: recommended_sampling(small_files(model))
    defaults = None if submit_options.ignore_model_defaults else model_defaults(small_files(model))
    return replace(submission, model=model, model_defaults=defaults)


def _required_broker(settings: Settings) -> str:
    if settings.broker is None:
        raise UsageError("submit needs a Redis server: give --broker redis://… or use `producer run`")
    return settings.broker


@contextmanager
def _submission(
    settings: Settings,
    source: Path | Sequence[str],
    grid: Grid,
    submit_options: SubmitOptions,
    input_options: InputOptions,
) -> Iterator[Submission]:
    """The command's submission. Stdin and prompts become a file, because it is read twice. Raises `UsageError`."""
    submit_options.check()
    submission = Submission(
        path=source if isinstance(source, Path) else Path(),
        model=settings.model,
        grid=grid,
        priority=submit_options.priority,
        name=submit_options.name,
        seed=submit_options.seed,
        reader=input_options.reader_options(),
        chat=input_options.chat_options(),
        keep_prompts=submit_options.keep_prompts,
    )
    with _source_file(source) as (path, shown):
        if not isinstance(source, Path):
            submission = replace(submission, reader=replace(submission.reader, format="jsonl", encoding=None))
        try:
            yield replace(submission, path=path, source=shown, file_state=FileState.of(path))
        except UsageError as error:
            if shown is None:
                raise
            raise type(error)(str(error).replace(str(path), shown)) from error


@contextmanager
def _source_file(source: Path | Sequence[str]) -> Iterator[tuple[Path, str | None]]:
    """A file that can be read twice, and the name for messages where that is another one. Raises `UsageError`."""
    if not isinstance(source, Path):
        lines = ({"custom_id": f"prompt-{number}", "prompt": text} for number, text in enumerate(source, 1))
        with private_copy(BytesIO(b"".join(f"{json.dumps(line)}\n".encode() for line in lines)), ".jsonl") as copy:
            yield copy, "--prompt"
    elif str(source) == "-":
        with private_copy(stdin.buffer, ".jsonl") as copy:
            yield copy, "stdin"
    else:
        with readable_twice(source) as path:
            yield path, None if path == source else str(source)
