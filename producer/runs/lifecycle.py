"""Submitting a run, decoding it here, going on with one: the order of things, told once."""

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

from migrations.upgrade import SchemaOutOfDate, check_schema
from models.database.connection import check_connection, open_database
from models.settings import DEFAULT_MODEL, Settings
from producer.console import say
from producer.errors import UsageError
from producer.options import Reading, Submitting, Telling
from producer.prompts.dry_run import show_dry_run
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import Submission
from producer.prompts.validation import Checked, check, write_invalid
from producer.render import print_progress, to_json, visible
from producer.results.progress import watch
from producer.results.queries import RunProgress, find_run, recent_errors, run_progress
from producer.runs.broker import check_broker, send_run
from producer.runs.embedded import LocalServices
from producer.runs.model_check import check_model
from producer.runs.writer import Written, find_unfinished, write

EXIT_OK, EXIT_FAILED_JOBS, EXIT_INTERRUPTED = 0, 1, 130

QUERIES = (
    "select strategy, count(*), avg(completion_tokens) from job_results group by 1",
    "select custom_id, text from job_results where run_id = '{run}' limit 5",
    "select custom_id, position, token, logprob from job_tokens where run_id = '{run}' order by logprob limit 10",
)


def run_here(
    settings: Settings, file: Path, grid: Grid, submitting: Submitting, reading: Reading, telling: Telling
) -> int:
    """`producer run`: validates, starts what is needed, decodes, sums up; returns the exit code."""
    with _submission(settings, file, grid, submitting, reading) as submission:
        submission = replace(submission, model=check_model(settings.model))
        settings = settings.model_copy(update={"model": submission.model})
        checked = _check(submission, reading)
        if reading.dry_run:
            return show_dry_run(submission, checked, as_json=telling.json)
        with LocalServices(settings) as local:
            database = local.open_database()
            run_id = _write_or_resume(submission, checked, database, local, submitting)
            return _decode(local, database, run_id, telling)


def submit_run(
    settings: Settings, file: Path, grid: Grid, submitting: Submitting, reading: Reading, *, as_json: bool
) -> int:
    """`producer submit`: validates, writes, sends, prints the run's id; returns the exit code."""
    with _submission(settings, file, grid, submitting, reading) as submission:
        if settings.model != DEFAULT_MODEL:
            submission = replace(submission, model=check_model(settings.model))
        checked = _check(submission, reading)
        if reading.dry_run:
            return show_dry_run(submission, checked, as_json=as_json)
        broker = _required_broker(settings)
        database = ready_database(settings)
        check_broker(broker)
        written = _write(submission, checked, database, submitting)
    told = to_json({"id": written.run_id, "new": written.num_new, "already_there": written.num_known})
    print(told if as_json else written.run_id, flush=True)  # noqa: T201 - before anything is sent: the run is there whatever happens now
    return _send(settings, database, written.run_id)


def resume_run(settings: Settings, reference: str | None, telling: Telling) -> int:
    """`producer resume`: with a broker, sends what was not sent; without one, decodes the rest here."""
    database = existing_database(settings)
    if settings.broker is not None:
        check_broker(settings.broker)
        named = None if reference is None else find_run(database, reference)
        return _send(settings, database, named, as_json=telling.json)
    run_id = find_run(database, reference)
    progress = run_progress(database, run_id)
    if progress.is_finished:
        say(f"run {run_id} is finished: nothing to resume")
        if telling.json:
            print_progress(progress)
        return EXIT_OK
    settings = settings.model_copy(update={"model": progress.model})
    with LocalServices(settings) as local:
        local.return_interrupted(database, run_id)
        return _decode(local, database, run_id, telling)


def ready_database(settings: Settings) -> Engine:
    """The database, reachable and at this version's schema; an embedded one is made. Raises `UsageError`."""
    from migrations.upgrade import upgrade

    database = open_database(settings.database_url)
    check_connection(database)
    if settings.database is None:
        upgrade(database)
    try:
        check_schema(database)
    except SchemaOutOfDate as error:
        raise UsageError(str(error)) from error
    return database


def existing_database(settings: Settings) -> Engine:
    """The same for a command that has nothing to do where there is none. Raises `UsageError`."""
    path = settings.home / "nocturne.db"
    if settings.database is None and not path.exists():
        raise UsageError(f"there is no database at {path}; submit a run first or give --database")
    return ready_database(settings)


def _write_or_resume(
    submission: Submission, checked: Checked, database: Engine, local: LocalServices, submitting: Submitting
) -> str:
    """The run's id: a new one, or the unfinished one with the same content."""
    unfinished = None
    if submitting.on_duplicate == "skip":
        unfinished = find_unfinished(database, checked.content_hash)
    if unfinished is None:
        run_id = _write(submission, checked, database, submitting).run_id
    else:
        run_id = unfinished.id
        done = run_progress(database, run_id).num_final
        say(f"going on with run {run_id}: {done:,} of {unfinished.num_jobs:,} jobs are done")
    local.return_interrupted(database, run_id)
    return run_id


def _write(submission: Submission, checked: Checked, database: Engine, submitting: Submitting) -> Written:
    written = write(
        submission,
        checked,
        database,
        expires_after=submitting.expires_after(),
        on_duplicate=submitting.on_duplicate,
    )
    if written.num_known:
        say(f"run {written.run_id}: {written.num_known:,} already there, {written.num_new:,} new")
    return written


def _send(settings: Settings, database: Engine, run_id: str | None, *, as_json: bool = False) -> int:
    """Sends what is in the outbox; where Redis does not take it, says how to go on."""
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


def _decode(local: LocalServices, database: Engine, run_id: str, telling: Telling) -> int:
    """Starts the worker, sends the run, watches it to its end and sums up."""
    progress = run_progress(database, run_id)
    try:
        with _interruption() as is_interrupted:
            if not progress.is_finished:
                local.start_worker()
                send_run(local.settings, database, run_id)
                progress = watch(
                    database, run_id, check=local.check_worker, is_interrupted=is_interrupted, quiet=telling.quiet
                )
    except KeyboardInterrupt:
        say(f"\ninterrupted; run {run_id} goes on with the same command, or with: producer resume {run_id}")
        return EXIT_INTERRUPTED
    if telling.json:
        print_progress(progress)
    elif not telling.quiet:
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
    """The database as one would name it: a file by its path from here."""
    if database.url.get_backend_name() != "sqlite" or database.url.database is None:
        return database.url.render_as_string()
    return relpath(database.url.database)


def _check(submission: Submission, reading: Reading) -> Checked:
    checked = check(submission, skip_invalid=reading.skip_invalid, allow_many=reading.yes)
    for warning in checked.warnings.values():
        say(f"warning: {visible(warning)}")
    if checked.num_invalid and reading.dry_run:
        say(f"{checked.num_invalid:,} invalid lines would be left out")
    elif checked.num_invalid:
        say(f"{checked.num_invalid:,} invalid lines are left out; they are in {write_invalid(submission, checked)}")
    return checked


def _required_broker(settings: Settings) -> str:
    if settings.broker is None:
        raise UsageError("submit needs a Redis server: give --broker redis://… or use `producer run`")
    return settings.broker


@contextmanager
def _submission(
    settings: Settings, file: Path, grid: Grid, submitting: Submitting, reading: Reading
) -> Iterator[Submission]:
    """What the command asks for. Stdin is copied to a file, because it is read twice. Raises `UsageError`."""
    submitting.check()
    submission = Submission(
        path=file,
        model=settings.model,
        grid=grid,
        priority=submitting.priority,
        name=submitting.name,
        seed=submitting.seed,
        reading=reading.input_options(),
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
    """Whether a Ctrl-C or a SIGTERM came. Only noted: an exception raised anywhere could be swallowed there."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: came.append(number)) for number in numbers]
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
