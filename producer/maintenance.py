"""The commands on runs and on the installation: resume, cancel, retry, pause, unpause, doctor, models, prune and db.

`producer.cli` registers them behind those that submit and read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from producer import options as given
from producer.option_groups import flat


@flat
def resume(
    connection: given.BrokerOptions,
    worker: given.WorkerOptions,
    output_options: given.OutputOptions,
    run: given.RunArgument = None,
) -> None:
    """Resumes an unfinished run: locally, or with --broker by sending its unsent jobs.

    Example: producer resume
    """
    from producer.runs.lifecycle import resume_run

    raise typer.Exit(resume_run(connection.settings_of_resuming(worker), run, output_options))


@flat
def cancel(
    connection: given.BrokerOptions,
    run: given.RequiredRun,
    custom_ids: Annotated[list[str] | None, typer.Argument(help="these jobs only", metavar="[CUSTOM_ID]...")] = None,
    as_json: given.AsJson = False,
) -> None:
    """Cancels a run, or some of its jobs: queued ones at once, running ones within two decode steps.

    The database holds the cancellation, so it also works while every worker is off. Finished answers stay.

    Example: producer cancel overnight
    """
    from producer.runs.control import cancel_jobs

    cancel_jobs(connection.settings(), run, custom_ids or [], as_json=as_json)


@flat
def retry(
    connection: given.BrokerOptions,
    worker: given.WorkerOptions,
    output_options: given.OutputOptions,
    wanted: given.RetryOptions,
    run: given.RunArgument = None,
) -> None:
    """Queues a run's failed, cancelled and expired jobs once more, or only the kinds that are named.

    With --broker they are sent to the workers, without one they are decoded here.

    Example: producer retry overnight --failed
    """
    from producer.runs.control import retry_jobs

    settings = connection.settings_of_resuming(worker)
    raise typer.Exit(retry_jobs(settings, run, wanted, output_options))


@flat
def pause(connection: given.DatabaseOptions, run: given.RequiredRun, as_json: given.AsJson = False) -> None:
    """Keeps a run's waiting jobs from workers until `unpause`; those that run go on to their end.

    The database holds the pause, so it survives restarts of workers, Redis and commands. Deadlines go on.

    Example: producer pause overnight
    """
    from producer.runs.control import pause_run

    pause_run(connection.settings(), run, as_json=as_json)


@flat
def unpause(connection: given.BrokerOptions, run: given.RequiredRun, as_json: given.AsJson = False) -> None:
    """Gives a paused run's jobs to the workers again.

    With --broker they are sent at once; otherwise workers of the database find them within a minute, and in a home
    `producer resume` goes on with the run.

    Example: producer unpause overnight --broker redis://db:6379/0
    """
    from producer.runs.control import unpause_run

    raise typer.Exit(unpause_run(connection.settings(), run, as_json=as_json))


@flat
def doctor(connection: given.ConnectionOptions, as_json: given.AsJson = False) -> None:
    """Examines model, disk, Redis, database and workers, and says how to fix them.

    Ends with 2 where `run` or `submit` would refuse, with 1 where anything else is bad.

    Example: producer doctor --broker redis://localhost:6379/0
    """
    from producer.runs.doctor import show_findings

    raise typer.Exit(show_findings(connection.settings(), as_json=as_json))


@flat
def models(
    model_types: Annotated[list[str] | None, typer.Argument(help="these alone", metavar="[TYPE]...")] = None,
    as_json: given.AsJson = False,
) -> None:
    """Shows on which path each type of model decodes, and how it was tested.

    Example: producer models qwen3 gpt_oss
    """
    from producer.model_files.model_table import show_models

    show_models(model_types or [], as_json=as_json)


@flat
def prune(
    connection: given.DatabaseOptions,
    older_than: Annotated[str, typer.Option(help="runs finished longer ago: 30d, 12h")],
    traces_only: Annotated[bool, typer.Option("--traces-only", help="keep jobs and answers")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be deleted")] = False,
    as_json: given.AsJson = False,
) -> None:
    """Deletes old runs, or their traces alone, in short transactions while workers go on.

    Dead letters of that age go with the runs: they may hold prompts.

    Example: producer prune --older-than 30d --traces-only --dry-run
    """
    from producer.runs.prune import prune_runs

    prune_runs(connection.settings(), older_than, traces_only=traces_only, is_dry=dry_run, as_json=as_json)


@flat
def db_reader(
    connection: given.DatabaseOptions,
    name: Annotated[str, typer.Argument(help="the role's name")] = "nocturne_reader",
    password_file: Annotated[
        Path | None, typer.Option(help="file of its password (default: a new one, which is printed)")
    ] = None,
) -> None:
    """Makes a role of PostgreSQL that may only read, and prints its URL for --read-database.

    The login of --database must be allowed to make roles. Called again, it grants again and sets a new password.

    Example: producer db reader --database postgresql+psycopg://owner@db/nocturne
    """
    from producer.runs.database import show_reader

    show_reader(connection.settings(), name, password_file)


@flat
def db_upgrade(connection: given.DatabaseOptions) -> None:
    """Upgrades the database to this version's schema.

    Example: producer db upgrade --database postgresql+psycopg://localhost/nocturne
    """
    from producer.runs.database import show_upgrade

    show_upgrade(connection.settings())
