"""`producer run`, `submit` and `resume`: the order of their steps, from options to the exit code."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from os.path import relpath
from pathlib import Path
from shutil import copyfileobj
from sys import stdin

from sqlalchemy import Engine

from models.settings import Settings
from producer.console import say
from producer.errors import UsageError
from producer.model_files.folder import model_files
from producer.model_files.generation_defaults import model_defaults, recommended_sampling
from producer.options import InputOptions, OutputOptions, SubmitOptions
from producer.prompts.dry_run import show_dry_run
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import Submission
from producer.prompts.prompt_check import PromptCheck
from producer.prompts.validation import ValidationReport, check, write_invalid
from producer.render import to_json, visible
from producer.results.progress import watch
from producer.results.queries import RunProgress, find_run, recent_errors, run_progress
from producer.results.run_tables import print_run
from producer.runs.broker import check_broker, send_run
from producer.runs.database import check_usable, existing_database, ready_database, writable_database
from producer.runs.embedded import LocalServices
from producer.runs.model_check import check_model, check_submitted_model, fetch_weights, small_files
from producer.runs.writer import SubmitResult, find_unfinished, write

EXIT_OK, EXIT_FAILED_JOBS, EXIT_INTERRUPTED = 0, 1, 130

QUERIES = (
    "select strategy, count(*), avg(completion_tokens) from job_results group by 1",
    "select custom_id, text from job_results where run_id = '{run}' limit 5",
    "select custom_id, position, token, logprob from job_tokens where run_id = '{run}' order by logprob limit 10",
)


def run_here(
    settings: Settings,
    file: Path,
    grid: Grid,
    submit_options: SubmitOptions,
    input_options: InputOptions,
    output_options: OutputOptions,
) -> int:
    """`producer run`: validates, starts what is needed, decodes, sums up; returns the exit code."""
    with _submission(settings, file, grid, submit_options, input_options) as submission:
        submission = _of_model(submission, check_model(settings.model), submit_options)
        submission = _with_prompt_check(submission)
        settings = settings.model_copy(update={"model": submission.model})
        report = _check(submission, input_options)
        if input_options.dry_run:
            show_dry_run(submission, report, as_json=output_options.json)
            return EXIT_OK
        check_usable(settings)
        fetch_weights(submission.model)
        with LocalServices(settings) as local:
            database = writable_database(settings)
            run_id = _write_or_resume(submission, report, database, local, submit_options)
            return _decode(local, database, run_id, output_options)


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
    told = to_json({"id": result.run_id, "new": result.num_new, "already_there": result.num_known})
    print(told if as_json else result.run_id, flush=True)  # noqa: T201 - before sending: the run is stored even if that fails
    return _send(settings, database, result.run_id)


def resume_run(settings: Settings, reference: str | None, output_options: OutputOptions) -> int:
    """`producer resume`: sends the unsent jobs with a broker, decodes the rest here without one."""
    database = existing_database(settings)
    if settings.broker is not None:
        check_broker(settings.broker)
        named = None if reference is None else find_run(database, reference)
        return _send(settings, database, named, as_json=output_options.json)
    run_id = find_run(database, reference)
    progress = run_progress(database, run_id)
    if progress.is_finished:
        say(f"run {run_id} is finished: nothing to resume")
        if output_options.json:
            print_run(progress)
        return EXIT_OK
    settings = settings.model_copy(update={"model": progress.model})
    with LocalServices(settings) as local:
        local.return_interrupted(database, run_id)
        return _decode(local, database, run_id, output_options)


def _write_or_resume(
    submission: Submission,
    report: ValidationReport,
    database: Engine,
    local: LocalServices,
    submit_options: SubmitOptions,
) -> str:
    """The run's id: a new one, or the unfinished one with the same content."""
    unfinished = None
    if submit_options.on_duplicate == "skip":
        unfinished = find_unfinished(database, report.content_hash)
    if unfinished is None:
        run_id = _write(submission, report, database, submit_options).run_id
    else:
        run_id = unfinished.id
        done = run_progress(database, run_id).num_final
        say(f"going on with run {run_id}: {done:,} of {unfinished.num_jobs:,} jobs are done")
    local.return_interrupted(database, run_id)
    return run_id


def _write(
    submission: Submission, report: ValidationReport, database: Engine, submit_options: SubmitOptions
) -> SubmitResult:
    result = write(
        submission,
        report,
        database,
        expires_after=submit_options.expires_after(),
        on_duplicate=submit_options.on_duplicate,
    )
    if result.num_known:
        say(f"run {result.run_id}: {result.num_known:,} already there, {result.num_new:,} new")
    return result


def _send(settings: Settings, database: Engine, run_id: str | None, *, as_json: bool = False) -> int:
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


def _decode(local: LocalServices, database: Engine, run_id: str, output_options: OutputOptions) -> int:
    """Starts the worker, sends the run, watches it to its end and sums up; returns the exit code."""
    progress = run_progress(database, run_id)
    try:
        with _interruption() as is_interrupted:
            if not progress.is_finished:
                local.start_worker()
                send_run(local.settings, database, run_id)
                progress = watch(
                    database,
                    run_id,
                    check=local.check_worker,
                    is_interrupted=is_interrupted,
                    quiet=output_options.quiet,
                )
    except KeyboardInterrupt:
        say(f"\ninterrupted; run {run_id} goes on with the same command, or with: producer resume {run_id}")
        return EXIT_INTERRUPTED
    if output_options.json:
        print_run(progress)
    elif not output_options.quiet:
        _sum_up(database, progress, local.settings)
    return EXIT_OK if progress.succeeded == progress.num_jobs else EXIT_FAILED_JOBS


def _sum_up(database: Engine, progress: RunProgress, settings: Settings) -> None:
    assert progress.finished_at is not None
    seconds = (progress.finished_at - progress.created_at).total_seconds()
    say(
        f"run {progress.id}: {progress.succeeded:,} of {progress.num_jobs:,} jobs succeeded, "
        f"{progress.failed:,} failed, {progress.completion_tokens:,} tokens in {seconds:,.1f} s"
    )
    for custom_id, error in recent_errors(database, progress.id):
        say(f"  failed: {visible(custom_id)}: {visible(error)}")
    say(f"The answers are in {_place(database)}. Try:")
    flags = f" --home {settings.home}" if str(settings.home) != ".nocturne" else ""
    for query in QUERIES:
        say(f'  producer sql{flags} "{query.format(run=progress.id)}"')


def _place(database: Engine) -> str:
    """The database's name for a person: a file's path from here, or the URL."""
    if database.url.get_backend_name() != "sqlite" or database.url.database is None:
        return database.url.render_as_string()
    return relpath(database.url.database)


def _with_prompt_check(submission: Submission) -> Submission:
    """The submission with a check of each prompt against the model's small files, where they are at hand."""
    files = model_files(submission.model)
    if files is None or not files.has_tokenizer_files:
        say(
            f"warning: the files of {submission.model} are not at hand: its workers find out whether chats and long "
            "prompts fit it"
        )
        return submission
    return replace(submission, prompt_check=PromptCheck(files))


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
    settings: Settings, file: Path, grid: Grid, submit_options: SubmitOptions, input_options: InputOptions
) -> Iterator[Submission]:
    """The command's submission. Stdin is copied to a file, because it is read twice. Raises `UsageError`."""
    submit_options.check()
    submission = Submission(
        path=file,
        model=settings.model,
        grid=grid,
        priority=submit_options.priority,
        name=submit_options.name,
        seed=submit_options.seed,
        reader=input_options.reader_options(),
        chat=input_options.chat_options(),
        keep_prompts=submit_options.keep_prompts,
    )
    if str(file) != "-":
        if file.is_dir():
            raise UsageError(f"{file} is a directory; give a file of prompts")
        yield submission
        return
    with tempfile.NamedTemporaryFile(prefix="stdin-", suffix=".jsonl") as copy:
        copyfileobj(stdin.buffer, copy)
        copy.flush()
        yield replace(submission, path=Path(copy.name), source="stdin")


@contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Tells whether SIGINT or SIGTERM came. Handlers only note it: code that runs might swallow an exception."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: came.append(number)) for number in numbers]
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
