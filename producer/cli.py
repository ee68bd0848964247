"""The `producer` command: each subcommand reads its options and calls one function of a wing.

Nothing heavy is imported here, so that `producer --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.name_lookup import bound_name_lookups
from producer import maintenance
from producer import options as given
from producer.console import say
from producer.errors import UsageError
from producer.option_groups import flat

HELP_NAMES = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    context_settings=HELP_NAMES, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False
)
db_app = typer.Typer(no_args_is_help=True, help="The database's schema, and a role that reads it.")
app.add_typer(db_app, name="db")

FILE_HELP = "JSONL, CSV, Parquet or text, also .gz and .zst; - for stdin"
File = Annotated[Path, typer.Argument(help=FILE_HELP, allow_dash=True)]


@app.command()
@flat
def run(
    decoding: given.DecodingOptions,
    input_options: given.InputOptions,
    submit_options: given.SubmitOptions,
    connection: given.ConnectionOptions,
    worker: given.WorkerOptions,
    output_options: given.OutputOptions,
    file: Annotated[Path | None, typer.Argument(help=FILE_HELP, allow_dash=True)] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="a prompt, answered on the screen; repeatable")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="decode in the background; status --watch shows it")] = False,
) -> None:
    """Submits a file and decodes it here: own Redis, SQLite and one local worker.

    After an interruption the same command resumes the run.

    Example: producer run examples/study.jsonl --model examples/tiny/model --strategy greedy,sample
    """
    from producer.runs.lifecycle import run_here

    if (file is None) == (not prompt):
        raise UsageError("give a FILE or --prompt TEXT" + (", not both" if prompt else ""))
    source = file if file is not None else (prompt or [])
    raise typer.Exit(
        run_here(
            connection.settings(worker), source, decoding.grid(), submit_options, input_options, output_options,
            is_detached=detach,
        )
    )  # fmt: skip


@app.command()
@flat
def submit(
    file: File,
    decoding: given.DecodingOptions,
    input_options: given.InputOptions,
    submit_options: given.SubmitOptions,
    connection: given.ConnectionOptions,
    as_json: given.AsJson = False,
) -> None:
    """Submits a file to workers that run elsewhere, and prints the run's id.

    Example: producer submit prompts.jsonl --broker redis://db:6379/0 --database postgresql+psycopg://db/nocturne
    """
    from producer.runs.lifecycle import submit_run

    settings = connection.settings()
    raise typer.Exit(submit_run(settings, file, decoding.grid(), submit_options, input_options, as_json=as_json))


@app.command()
@flat
def status(
    connection: given.ReadingOptions,
    run: given.RunArgument = None,
    watch: Annotated[bool, typer.Option("--watch", "--follow", help="until the run is finished")] = False,
    as_json: given.AsJson = False,
) -> None:
    """Shows the newest runs, or one of them.

    Example: producer status --watch
    """
    from producer.results.status import show_status

    raise typer.Exit(show_status(connection.settings(), run, is_watching=watch, as_json=as_json))


@app.command()
@flat
def top(connection: given.ReadingOptions, as_json: given.AsJson = False) -> None:
    """Shows all workers and the latest runs, again and again until Ctrl-C.

    Example: producer top
    """
    from producer.results.live.top import show_top

    show_top(connection.settings(), as_json=as_json)


@app.command()
@flat
def results(
    connection: given.ReadingOptions,
    wanted: given.SelectionOptions,
    run: given.RunArgument = None,
    format: Annotated[
        str | None, typer.Option(help="jsonl, csv, parquet or openai (default: by the file's name, jsonl for stdout)")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="a file; default: stdout")] = None,
    traces: Annotated[bool, typer.Option("--traces", help="with a row's tokens in `trace`")] = False,
    csv_safe: given.CsvSafe = False,
) -> None:
    """Writes a run's results in the order of its input.

    The openai format writes requests without an answer to a second file, named after the first.

    Example: producer results -o answers.csv --state succeeded --where topic=cats
    """
    from producer.results.export import export_results

    export_results(
        connection.settings(), run, format, output, wanted.selection(), with_traces=traces, is_csv_safe=csv_safe
    )


@app.command()
@flat
def sql(
    connection: given.ReadingOptions,
    statement: Annotated[
        str | None, typer.Argument(help="SELECTs or a command such as .tables; without one, a console or stdin")
    ] = None,
    format: Annotated[str, typer.Option(help="table, vertical, json, csv or markdown")] = "table",
    timeout: Annotated[float, typer.Option(help="seconds that a statement may take", min=0.001)] = 60.0,
    csv_safe: given.CsvSafe = False,
    as_superuser: given.AsSuperuser = False,
    examples: Annotated[
        bool, typer.Option("--examples", help="print queries to begin with; with a name, run that one")
    ] = False,
) -> None:
    """Runs a SELECT on a read-only connection; docs/sql.md has the tables and views.

    On PostgreSQL the login must not be a superuser; `producer db reader` makes a role that may only read.

    Example: producer sql "select strategy, count(*), avg(completion_tokens) from job_results group by 1"
    """
    from producer.results.sql.command import print_sql
    from producer.results.sql.output import SqlOutput

    output = SqlOutput(format, timeout, csv_safe)
    settings = connection.settings()
    raise typer.Exit(print_sql(settings, statement, output, as_superuser=as_superuser, is_example=examples))


@app.command()
@flat
def show(
    connection: given.ReadingOptions,
    run: given.RequiredRun,
    custom_id: Annotated[str, typer.Argument(help="the job")],
    alternatives: Annotated[bool, typer.Option("--alternatives", help="each token with what else was likely")] = False,
    as_json: given.AsJson = False,
) -> None:
    """Shows one job with its tokens colored by their probability, and its beams as a tree.

    Example: producer show study "hedgehog#beam,num_beams=4" --alternatives
    """
    from producer.results.show import show_job

    show_job(connection.settings(), run, custom_id, with_alternatives=alternatives, as_json=as_json)


@app.command()
@flat
def report(
    connection: given.ReadingOptions,
    wanted: given.SelectionOptions,
    run: given.RunArgument = None,
    other: Annotated[str | None, typer.Argument(help="a second run, to compare by custom_id")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="the page")] = Path("report.html"),
    limit: Annotated[
        int, typer.Option(help="the first N prompts or pairs; figures are of all", min=1, metavar="N")
    ] = 200,
    all_prompts: Annotated[bool, typer.Option("--all", help="every prompt")] = False,
    tokens: Annotated[str, typer.Option(help="auto, all or none: the answers whose tokens can be looked at")] = "auto",
    as_superuser: given.AsSuperuser = False,
) -> None:
    """Writes a self-contained page: figures, plots, and a run's answers side by side, or two runs compared.

    Example: producer report study -o study.html --where topic=cats
    """
    from producer.results.report.command import PageOptions, write_comparison, write_report

    options = PageOptions(wanted.selection(), None if all_prompts else limit, tokens)
    if run is not None and other is not None:
        write_comparison(connection.settings(), (run, other), output, options, as_superuser=as_superuser)
    else:
        write_report(connection.settings(), run, output, options, as_superuser=as_superuser)


@app.command()
@flat
def view(
    connection: given.ReadingOptions,
    run: Annotated[str | None, typer.Argument(help="id, its beginning, or name; default: the list of runs")] = None,
    host: Annotated[str, typer.Option(help="address to listen at; others than this reach the network")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="default: any free one", min=0, max=65535)] = 0,
    as_superuser: given.AsSuperuser = False,
) -> None:
    """Serves the database as pages on this machine: runs, live progress, answers with their tokens, SQL.

    The printed address holds a token, and nothing is written. Without a run it opens with the list of runs.

    Example: producer view
    """
    from producer.results.view.command import Address
    from producer.results.view.command import view as serve_pages

    serve_pages(connection.settings(), run, Address(host, port), as_superuser=as_superuser)


for command in (
    maintenance.resume, maintenance.cancel, maintenance.retry, maintenance.pause, maintenance.unpause,
    maintenance.doctor, maintenance.models, maintenance.prune,
):  # fmt: skip
    app.command()(command)
db_app.command("upgrade")(maintenance.db_upgrade)
db_app.command("reader")(maintenance.db_reader)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"nocturne {version('nocturne')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_print_version)
    ] = False,  # noqa: ARG001
) -> None:
    """Prompts in the evening, answers in SQL in the morning."""


def main() -> None:
    """Runs the command; wrong use ends with its message on stderr and exit code 2."""
    bound_name_lookups()
    try:
        app()
    except UsageError as error:
        _end(str(error))
    except Exception as error:
        message = _database_problem(error)
        if message is None:
            raise
        _end(message)


def _database_problem(error: Exception) -> str | None:
    """The line about a database that cannot be used; None for an error of the program."""
    from sqlalchemy.exc import DBAPIError

    from models.database.faults import DatabaseUnavailable, damage, is_unavailable, unavailable

    if isinstance(error, DBAPIError) and is_unavailable(error):
        return str(unavailable(error))
    found = error if isinstance(error, DatabaseUnavailable) else damage(error)
    return None if found is None else str(found)


def _end(message: str) -> None:
    say(f"error: {message}")
    raise SystemExit(2)
