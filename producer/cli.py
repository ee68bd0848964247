"""The `producer` command: each subcommand reads its options and calls a function with a name.

Nothing heavy is imported here, so that `producer --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from producer import options as given
from producer.console import say
from producer.errors import UsageError
from producer.flat_options import flat

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Prompts in the evening, answers in SQL in the morning.",
    pretty_exceptions_enable=False,
)
db_app = typer.Typer(no_args_is_help=True, help="The database's schema.")
app.add_typer(db_app, name="db")

File = Annotated[
    Path, typer.Argument(help="JSONL, CSV, Parquet or text, also .gz and .zst; - for stdin", allow_dash=True)
]
RunArgument = Annotated[str | None, typer.Argument(help="id, its beginning, or name; default: the newest")]


@app.command()
@flat
def run(
    file: File,
    decoding: given.Decoding,
    reading: given.Reading,
    submitting: given.Submitting,
    places: given.Places,
    quiet: given.Quiet = False,
) -> None:
    """Submits a file and decodes it here: own Redis, SQLite and one local worker.

    Interrupted, the same command goes on where it was.

    Example: producer run examples/study.jsonl --model examples/tiny/model --strategy greedy,sample
    """
    from producer.run import run_here

    raise typer.Exit(run_here(places.settings(), file, decoding.grid(), submitting, reading, quiet=quiet))


@app.command()
@flat
def submit(
    file: File,
    decoding: given.Decoding,
    reading: given.Reading,
    submitting: given.Submitting,
    places: given.Places,
) -> None:
    """Submits a file to workers that run elsewhere, and prints the run's id.

    Example: producer submit prompts.jsonl --broker redis://db:6379/0 --database postgresql+psycopg://db/nocturne
    """
    from producer.run import submit_run

    raise typer.Exit(submit_run(places.settings(), file, decoding.grid(), submitting, reading))


@app.command()
@flat
def status(
    places: given.DatabasePlace,
    run: RunArgument = None,
    watch: Annotated[bool, typer.Option("--watch", help="until the run is finished")] = False,
    as_json: given.AsJson = False,
) -> None:
    """Shows the newest runs, or one of them.

    Example: producer status --watch
    """
    from producer.show_status import show_status

    raise typer.Exit(show_status(places.settings(), run, is_watching=watch, as_json=as_json))


@app.command()
@flat
def results(
    places: given.DatabasePlace,
    run: RunArgument = None,
    format: Annotated[str, typer.Option(help="jsonl or csv")] = "jsonl",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="a file; default: stdout")] = None,
) -> None:
    """Writes a run's results in the order of its input.

    Example: producer results --format csv -o answers.csv
    """
    from producer.export import export_results

    export_results(places.settings(), run, format, output)


@app.command()
@flat
def sql(
    places: given.DatabasePlace,
    statement: Annotated[str, typer.Argument(help="a SELECT; see docs/sql.md for tables and views")],
    format: Annotated[str, typer.Option(help="table, json or csv")] = "table",
) -> None:
    """Runs a SELECT on a read-only connection.

    Example: producer sql "select strategy, count(*), avg(completion_tokens) from job_results group by 1"
    """
    from producer.export import print_sql

    print_sql(places.settings(), statement, format)


@app.command()
@flat
def resume(places: given.QueuePlace, run: RunArgument = None, quiet: given.Quiet = False) -> None:
    """Goes on with an unfinished run: here, or with --broker by sending again what was not sent.

    Example: producer resume
    """
    from producer.run import resume_run

    raise typer.Exit(resume_run(places.settings(), run, quiet=quiet))


@app.command()
@flat
def cancel(
    places: given.QueuePlace,
    run: Annotated[str, typer.Argument(help="id, its beginning, or name")],
    custom_ids: Annotated[list[str] | None, typer.Argument(help="these jobs only", metavar="[CUSTOM_ID]...")] = None,
) -> None:
    """Stops a run, or some of its jobs: queued ones at once, running ones within two decode steps.

    It is kept in the database, so it also holds while every worker is off. Finished answers stay.

    Example: producer cancel overnight
    """
    from producer.control import cancel_jobs

    cancel_jobs(places.settings(), run, custom_ids or [])


@app.command()
@flat
def retry(
    places: given.QueuePlace,
    run: RunArgument = None,
    failed: Annotated[bool, typer.Option("--failed", help="the failed jobs")] = False,
    cancelled: Annotated[bool, typer.Option("--cancelled", help="the cancelled jobs")] = False,
    expired: Annotated[bool, typer.Option("--expired", help="the expired jobs")] = False,
    quiet: given.Quiet = False,
) -> None:
    """Queues a run's jobs that did not succeed once more; all of them where no kind is named.

    With --broker they are sent to the workers, without one they are decoded here.

    Example: producer retry overnight --failed
    """
    from producer.control import retry_jobs

    kinds = {"failed": failed, "cancelled": cancelled, "expired": expired}
    raise typer.Exit(
        retry_jobs(places.settings(), run, [name for name, is_asked in kinds.items() if is_asked], quiet=quiet)
    )


@app.command()
@flat
def doctor(places: given.Places) -> None:
    """Checks model, disk, Redis, database and workers, and says what to do.

    Example: producer doctor --broker redis://localhost:6379/0
    """
    from producer.doctor import examine

    findings = list(examine(places.settings()))
    for finding in findings:
        typer.echo(f"{'ok ' if finding.is_ok else 'BAD'}  {finding.part:9} {finding.message}")
    raise typer.Exit(0 if all(finding.is_ok for finding in findings) else 1)


@db_app.command("upgrade")
@flat
def db_upgrade(places: given.DatabasePlace) -> None:
    """Brings the database to this version's schema.

    Example: producer db upgrade --database postgresql+psycopg://localhost/nocturne
    """
    from migrations.upgrade import current_revision, upgrade
    from models.database import check_connection, open_database

    engine = open_database(places.settings().database_url)
    check_connection(engine)
    upgrade(engine)
    say(f"{engine.url.render_as_string()} is at revision {current_revision(engine)}")


def main() -> None:
    """Runs the command; wrong use ends with its message on stderr and exit code 2."""
    try:
        app()
    except UsageError as error:
        _end(str(error))
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python would complain once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except Exception as error:
        from models.database import DatabaseUnavailable

        if not isinstance(error, DatabaseUnavailable):
            raise
        _end(str(error))


def _end(message: str) -> None:
    say(f"error: {message}")
    raise SystemExit(2)
