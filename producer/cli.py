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

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Prompts in the evening, answers in SQL in the morning.",
    pretty_exceptions_enable=False,
)
db_app = typer.Typer(no_args_is_help=True, help="The database's schema.")
app.add_typer(db_app, name="db")

File = Annotated[Path, typer.Argument(help="JSONL, one prompt per line; - for stdin", allow_dash=True)]
RunArgument = Annotated[str | None, typer.Argument(help="id, its beginning, or name; default: the newest")]


@app.command()
def run(
    file: File,
    model: given.Model = None,
    strategy: given.Strategy = None,
    temperature: given.Temperature = None,
    top_p: given.TopP = None,
    top_k: given.TopK = None,
    min_p: given.MinP = None,
    repetition_penalty: given.RepetitionPenalty = None,
    num_beams: given.NumBeams = None,
    num_return: given.NumReturn = None,
    length_penalty: given.LengthPenalty = None,
    max_new_tokens: given.MaxNewTokens = None,
    n: given.Samples = None,
    top_logprobs: given.TopLogprobs = None,
    repeat: given.Repeat = 1,
    stop: given.Stop = None,
    trace: given.Trace = None,
    seed: given.Seed = None,
    priority: given.Priority = 5,
    name: given.Name = None,
    database: given.Database = None,
    broker: given.Broker = None,
    home: given.Home = None,
    quiet: given.Quiet = False,
) -> None:
    """Submits a file and decodes it here: own Redis, SQLite and one local worker.

    Interrupted, the same command goes on where it was.

    Example: producer run examples/study.jsonl --model examples/tiny/model --strategy greedy,sample
    """
    from producer.run import run_here

    grid = given.grid_from(
        strategy=strategy, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
        repetition_penalty=repetition_penalty, num_beams=num_beams, num_return=num_return,
        length_penalty=length_penalty, max_new_tokens=max_new_tokens, n=n, top_logprobs=top_logprobs,
        stop=stop, trace=trace, repeat=repeat,
    )  # fmt: skip
    settings = given.settings_from(model=model, database=database, broker=broker, home=home)
    raise typer.Exit(run_here(settings, file, grid, seed=seed, priority=priority, name=name, quiet=quiet))


@app.command()
def submit(
    file: File,
    model: given.Model = None,
    strategy: given.Strategy = None,
    temperature: given.Temperature = None,
    top_p: given.TopP = None,
    top_k: given.TopK = None,
    min_p: given.MinP = None,
    repetition_penalty: given.RepetitionPenalty = None,
    num_beams: given.NumBeams = None,
    num_return: given.NumReturn = None,
    length_penalty: given.LengthPenalty = None,
    max_new_tokens: given.MaxNewTokens = None,
    n: given.Samples = None,
    top_logprobs: given.TopLogprobs = None,
    repeat: given.Repeat = 1,
    stop: given.Stop = None,
    trace: given.Trace = None,
    seed: given.Seed = None,
    priority: given.Priority = 5,
    name: given.Name = None,
    database: given.Database = None,
    broker: given.Broker = None,
    home: given.Home = None,
) -> None:
    """Submits a file to workers that run elsewhere, and prints the run's id.

    Example: producer submit prompts.jsonl --broker redis://db:6379/0 --database postgresql+psycopg://db/nocturne
    """
    from producer.run import submit_run

    grid = given.grid_from(
        strategy=strategy, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
        repetition_penalty=repetition_penalty, num_beams=num_beams, num_return=num_return,
        length_penalty=length_penalty, max_new_tokens=max_new_tokens, n=n, top_logprobs=top_logprobs,
        stop=stop, trace=trace, repeat=repeat,
    )  # fmt: skip
    settings = given.settings_from(model=model, database=database, broker=broker, home=home)
    typer.echo(submit_run(settings, file, grid, seed=seed, priority=priority, name=name))


@app.command()
def status(
    run: RunArgument = None,
    watch: Annotated[bool, typer.Option("--watch", help="until the run is finished")] = False,
    as_json: given.AsJson = False,
    database: given.Database = None,
    home: given.Home = None,
) -> None:
    """Shows the newest runs, or one of them.

    Example: producer status --watch
    """
    from producer.show_status import show_status

    settings = given.settings_from(database=database, home=home)
    raise typer.Exit(show_status(settings, run, is_watching=watch, as_json=as_json))


@app.command()
def results(
    run: RunArgument = None,
    format: Annotated[str, typer.Option(help="jsonl or csv")] = "jsonl",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="a file; default: stdout")] = None,
    database: given.Database = None,
    home: given.Home = None,
) -> None:
    """Writes a run's results in the order of its input.

    Example: producer results --format csv -o answers.csv
    """
    from producer.export import export_results

    export_results(given.settings_from(database=database, home=home), run, format, output)


@app.command()
def sql(
    statement: Annotated[str, typer.Argument(help="a SELECT; see docs/sql.md for tables and views")],
    format: Annotated[str, typer.Option(help="table, json or csv")] = "table",
    database: given.Database = None,
    home: given.Home = None,
) -> None:
    """Runs a SELECT on a read-only connection.

    Example: producer sql "select strategy, count(*), avg(completion_tokens) from job_results group by 1"
    """
    from producer.export import print_sql

    print_sql(given.settings_from(database=database, home=home), statement, format)


@app.command()
def resume(
    run: RunArgument = None,
    quiet: given.Quiet = False,
    database: given.Database = None,
    broker: given.Broker = None,
    home: given.Home = None,
) -> None:
    """Goes on with an unfinished run: here, or with --broker by sending again what was not sent.

    Example: producer resume
    """
    from producer.run import resume_run

    settings = given.settings_from(database=database, broker=broker, home=home)
    raise typer.Exit(resume_run(settings, run, quiet=quiet))


@app.command()
def doctor(
    model: given.Model = None,
    database: given.Database = None,
    broker: given.Broker = None,
    home: given.Home = None,
) -> None:
    """Checks model, disk, Redis, database and workers, and says what to do.

    Example: producer doctor --broker redis://localhost:6379/0
    """
    from producer.doctor import examine

    findings = list(examine(given.settings_from(model=model, database=database, broker=broker, home=home)))
    for finding in findings:
        typer.echo(f"{'ok ' if finding.is_ok else 'BAD'}  {finding.part:9} {finding.message}")
    raise typer.Exit(0 if all(finding.is_ok for finding in findings) else 1)


@db_app.command("upgrade")
def db_upgrade(database: given.Database = None, home: given.Home = None) -> None:
    """Brings the database to this version's schema.

    Example: producer db upgrade --database postgresql+psycopg://localhost/nocturne
    """
    from migrations.upgrade import current_revision, upgrade
    from models.database import check_connection, open_database

    engine = open_database(given.settings_from(database=database, home=home).database_url)
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
