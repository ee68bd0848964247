"""Decoding a run here: starts the worker, sends the jobs, watches them to their end and sums up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os.path import relpath

from sqlalchemy import Engine

from models.database.connection import empty_journal
from models.database.faults import database_name
from models.settings import Settings
from producer.console import say
from producer.errors import UsageError
from producer.home import Holder, holder_of, home_options
from producer.options import OutputOptions
from producer.render import visible
from producer.results.answers import AnswerPrinter
from producer.results.export import export_results
from producer.results.live.watch import shows_frames, watch
from producer.results.queries import RunProgress, recent_errors, run_progress
from producer.results.run_tables import final_counts, print_run
from producer.runs.broker import send_run
from producer.runs.embedded import LocalServices
from producer.runs.interrupted_jobs import return_interrupted, return_running
from producer.runs.interruption import Interruption

EXIT_OK, EXIT_FAILED_JOBS = 0, 1

QUERIES = (
    "select strategy, count(*), avg(completion_tokens) from job_results group by 1",
    "select custom_id, text from job_results where run_id = '{run}' limit 5",
    "select custom_id, position, token, logprob from job_tokens where run_id = '{run}' order by logprob limit 10",
)


def decode(
    local: LocalServices,
    database: Engine,
    run_id: str,
    output_options: OutputOptions,
    settings: Settings,
    *,
    prints_answers: bool = False,
) -> int:
    """Decodes what is left of the run; returns the exit code. Raises `KeyboardInterrupt`."""
    local.note_run(run_id)
    local.purge_queue()
    return_interrupted(database, run_id, local.worker_name)
    interruption = local.interruption
    interruption.outcome = goes_on_line(run_id, settings)
    interruption.notice = (
        f"interrupted: running answers have {local.settings.grace_seconds:g} s to end; a second Ctrl-C ends at once"
    )
    printer = AnswerPrinter(database, run_id) if prints_answers and not output_options.json else None
    progress, has_summary = run_progress(database, run_id), False
    if not progress.is_finished:
        is_quiet = output_options.quiet or prints_answers
        progress = _decode_rest(local, database, run_id, printer, is_quiet=is_quiet)
        has_summary = shows_frames(quiet=is_quiet)
    with _ending(interruption, run_id, settings):
        if printer is not None:
            printer.print_new()
        empty_journal(database)
        show_end(database, progress, output_options, settings, is_short=prints_answers, has_summary=has_summary)
    return _exit_code(progress)


def attach(
    database: Engine, run_id: str, holder: Holder, output_options: OutputOptions, settings: Settings, stop: Interruption
) -> int:
    """Watches a run that another process decodes; returns the exit code. Raises `KeyboardInterrupt`."""
    say(f"run {run_id} is decoded by process {holder.pid}; this watches it, and Ctrl-C leaves it going")
    stop.notice, stop.outcome = "leaving the run alone", f"run {run_id} goes on in process {holder.pid}"

    def check() -> None:
        stop.check()
        if holder_of(settings.home) != holder and not run_progress(database, run_id).is_finished:
            raise UsageError(
                f"process {holder.pid} has ended; go on with: producer resume {run_id}{home_options(settings)}"
            )

    quiet = output_options.quiet
    progress = watch(database, run_id, check=check, sleep=stop.sleep, quiet=quiet, is_loading=lambda: True)
    has_summary = shows_frames(quiet=quiet)
    with _ending(stop, run_id, settings):
        show_end(database, progress, output_options, settings, is_short=False, has_summary=has_summary)
    return _exit_code(progress)


@contextmanager
def _ending(stop: Interruption, run_id: str, settings: Settings) -> Iterator[None]:
    """A block after the run's end: a signal ends it where it is, and the answers can be written again."""
    stop.notice = "interrupted, ending"
    stop.outcome = f"run {run_id} has ended; its answers: producer results {run_id}{home_options(settings)} -o FILE"
    with stop.at_once():
        yield


def show_end(
    database: Engine,
    progress: RunProgress,
    output_options: OutputOptions,
    settings: Settings,
    *,
    is_short: bool,
    has_summary: bool = False,
) -> None:
    """Writes the results where they are wanted, and sums up, unless the last frame has."""
    if output_options.output is not None:
        export_results(settings, progress.id, output_options.output_format, output_options.output)
    if output_options.json:
        print_run(progress)
    elif not output_options.quiet:
        if not has_summary:
            _sum_up(database, progress)
        if not is_short:
            _suggest(database, progress, settings)


def _decode_rest(
    local: LocalServices, database: Engine, run_id: str, printer: AnswerPrinter | None, *, is_quiet: bool
) -> RunProgress:
    def check() -> None:
        local.interruption.check()
        local.check_worker()
        if printer is not None:
            printer.print_new()

    try:
        local.start_worker()
        with local.interruption.at_once():
            _send_rest(local, database, run_id)
        sleep = local.interruption.sleep
        return watch(database, run_id, check=check, sleep=sleep, quiet=is_quiet, is_loading=lambda: True)
    except BaseException:
        local.interruption.tell()
        local.stop_worker()
        return_running(database, run_id, local.worker_name)
        raise


def goes_on_line(run_id: str, settings: Settings) -> str:
    """The line about a run that is stored and not finished."""
    return f"run {run_id} goes on with the same command, or with: producer resume {run_id}{home_options(settings)}"


def _send_rest(local: LocalServices, database: Engine, run_id: str) -> None:
    """Sends what is left of the run. Raises `UsageError` where Redis does not take it: its disk may be full."""
    try:
        send_run(local.settings, database, run_id)
    except ConnectionError as error:
        outcome = local.interruption.outcome
        raise UsageError(f"Redis does not take the jobs: {error}; when it does, {outcome}") from error


def _exit_code(progress: RunProgress) -> int:
    return EXIT_OK if progress.succeeded == progress.num_jobs else EXIT_FAILED_JOBS


def _sum_up(database: Engine, progress: RunProgress) -> None:
    assert progress.finished_at is not None
    seconds = (progress.finished_at - progress.created_at).total_seconds()
    say(
        f"run {progress.id}: {progress.succeeded:,} of {progress.num_jobs:,} jobs succeeded, "
        f"{final_counts(progress)}, {progress.completion_tokens:,} tokens in {seconds:,.1f} s"
    )
    for custom_id, error in recent_errors(database, progress.id):
        say(f"  failed: {visible(custom_id)}: {visible(error)}")


def _suggest(database: Engine, progress: RunProgress, settings: Settings) -> None:
    say(f"The answers are in {_place(database)}. Try:")
    for query in QUERIES:
        say(f'  producer sql{home_options(settings)} "{query.format(run=progress.id)}"')


def _place(database: Engine) -> str:
    """The database's name for a person: a file's path from here, or the URL."""
    if database.url.get_backend_name() != "sqlite" or database.url.database is None:
        return database_name(database.url)
    return relpath(database.url.database)
