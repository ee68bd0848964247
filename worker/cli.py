"""`worker start`, `drain` and `health`: the first runs a Celery worker per device, each in a process of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from models.checkpoint.adapter import check_adapter
from models.checkpoint.folder import check_folder
from models.checkpoint.small_files import CheckpointProblem
from models.child_process import isolate_children
from models.engine_options import checked_devices
from models.entry_point import take_output_for_messages
from models.model_name import with_revision
from models.name_lookup import bound_name_lookups
from models.settings import InvalidSettings, Settings, bounds_of, help_of, read_settings
from worker.devices import DeviceAssignment, assign_devices, device_names
from worker.monitoring.json_log import line_of, say, set_up_log, write_line
from worker.worker_group import REFUSED, GroupMember, WorkerGroup

EX_USAGE = 2
EX_FAILURE = 1
MAX_PORT = 65535

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    help="Decodes the jobs that `producer submit` queued.",
    add_completion=False,
)


def _option(setting: str, *names: str) -> Any:
    return typer.Option(*names, help=help_of(setting), **bounds_of(setting))


@app.command()
def start(
    devices: Annotated[str, _option("device")] = "auto",
    model: Annotated[str | None, typer.Option(help="hub id or folder of the model to serve")] = None,
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit of a hub model")] = None,
    database: Annotated[str | None, typer.Option(help="SQLAlchemy URL; default: <home>/nocturne.db")] = None,
    broker: Annotated[str | None, typer.Option(help="Redis URL")] = None,
    home: Annotated[Path | None, typer.Option(help="where the embedded database lies")] = None,
    max_num_seqs: Annotated[int | None, _option("max_num_seqs")] = None,
    max_model_len: Annotated[int | None, _option("max_model_len")] = None,
    kv_memory: Annotated[float | None, _option("kv_memory")] = None,
    gpu_memory_utilization: Annotated[float | None, _option("gpu_memory_utilization")] = None,
    deterministic: Annotated[bool, _option("deterministic", "--deterministic")] = False,
    dtype: Annotated[str | None, _option("dtype")] = None,
    quantize: Annotated[str | None, _option("quantize")] = None,
    allow_slow: Annotated[bool, _option("allow_slow", "--allow-slow")] = False,
    adapter: Annotated[str | None, _option("adapter")] = None,
    num_threads: Annotated[int | None, _option("num_threads")] = None,
    engine_timeout: Annotated[float | None, _option("engine_timeout")] = None,
    load_timeout: Annotated[float | None, _option("load_timeout")] = None,
    grace: Annotated[float | None, _option("grace_seconds")] = None,
    name: Annotated[str | None, typer.Option(help="how the worker appears in the workers table")] = None,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING, ERROR")] = "INFO",
    log_format: Annotated[str | None, _option("log_format")] = None,
    metrics_port: Annotated[int | None, _option("metrics_port")] = None,
    metrics_host: Annotated[str | None, _option("metrics_host")] = None,
) -> None:
    """Starts one Celery worker per device and waits for them.

    Example: worker start --model Qwen/Qwen2-0.5B --devices cuda:0,cuda:1 --broker redis://db:6379/0
    """
    options = {
        "model": model, "database": database, "broker": broker, "home": home, "max_num_seqs": max_num_seqs,
        "max_model_len": max_model_len, "allow_slow": allow_slow or None,
        "kv_memory": kv_memory, "gpu_memory_utilization": gpu_memory_utilization,
        "deterministic": deterministic or None, "dtype": dtype, "quantize": quantize, "adapter": adapter,
        "num_threads": num_threads, "worker_name": name, "engine_timeout": engine_timeout, "load_timeout": load_timeout,
        "grace_seconds": grace, "log_format": log_format, "metrics_port": metrics_port, "metrics_host": metrics_host,
    }  # fmt: skip
    try:
        settings, names = read_settings(**options), device_names(_checked(devices))
        if revision is not None:
            options["model"] = with_revision(settings.model, revision)
        if os.path.isdir(settings.model):
            check_folder(Path(settings.model))  # the engine does too, but after its libraries are loaded
        _check_ports(settings.metrics_port, len(names))
        _check_log_level(log_level)
        if settings.adapter is not None:
            check_adapter(Path(settings.adapter))
    except (CheckpointProblem, InvalidSettings, ValueError) as error:
        _say(str(error))
        raise SystemExit(EX_USAGE) from error
    given = {f"NOCTURNE_{key.upper()}": str(value) for key, value in options.items() if value is not None}
    os.environ.update(given)
    if devices == "auto" and names == ["cpu"]:
        _say("no GPU is visible here (/proc/driver/nvidia, /dev/nvidia*): one worker on the CPU")
    take_output_for_messages()
    assignments = assign_devices(names, os.cpu_count() or 1, os.environ)
    members = _members(assignments, settings.worker_name or os.uname().nodename, log_level, settings.metrics_port)
    raise SystemExit(WorkerGroup(members, partial(say, settings), settings.parent_pid).run())


@app.command()
def drain(
    name: Annotated[str, typer.Argument(help="the worker, as the workers table and `producer doctor` name it")],
    database: Annotated[str | None, typer.Option(help="SQLAlchemy URL; default: <home>/nocturne.db")] = None,
    home: Annotated[Path | None, typer.Option(help="where the embedded database lies")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="until it has ended")] = False,
) -> None:
    """Lets a worker finish what it has, take nothing new, and end with exit code 0.

    It is asked through the database, so this works from any machine. A second SIGTERM ends it at once, as ever.

    Example: worker drain gpu-7 --database postgresql+psycopg://db/nocturne --wait
    """
    from models.database.faults import DatabaseUnavailable
    from worker.draining import NoSuchWorker
    from worker.draining import drain as drain_worker

    try:
        settings = read_settings(database=database, home=home)
        _say(drain_worker(settings.database_url, name, is_awaited=wait))
    except (DatabaseUnavailable, InvalidSettings, NoSuchWorker) as error:
        _say(str(error))
        raise SystemExit(EX_USAGE) from error


@app.command()
def health(
    name: Annotated[str | None, typer.Argument(help="a worker by its --name; default: any of this host")] = None,
    database: Annotated[str | None, typer.Option(help="SQLAlchemy URL; default: <home>/nocturne.db")] = None,
    home: Annotated[Path | None, typer.Option(help="where the embedded database lies")] = None,
    within: Annotated[float, typer.Option(min=1, help="seconds since its last heartbeat, at most")] = 60.0,
) -> None:
    """Ends with 0 if a worker lives by its row in the database, else with 1: for the health check of a container.

    Example: worker health --within 60
    """
    from models.database.faults import DatabaseUnavailable
    from worker.health import Unhealthy, check_health

    try:
        print(check_health(read_settings(database=database, home=home), name, within))  # noqa: T201
    except InvalidSettings as error:
        _say(str(error))
        raise SystemExit(EX_USAGE) from error
    except (Unhealthy, DatabaseUnavailable) as error:
        _say(str(error))
        raise SystemExit(EX_FAILURE) from error


def _checked(devices: str) -> str:
    """The value of --devices. Raises `InvalidSettings`."""
    try:
        return checked_devices(devices)
    except ValueError as error:
        raise InvalidSettings(f"--devices: {error}, got {devices!r}") from error


def _check_ports(first: int | None, count: int) -> None:
    """Raises `InvalidSettings` where the last device's port would be above `MAX_PORT`."""
    if first is not None and first + count - 1 > MAX_PORT:
        raise InvalidSettings(f"--metrics-port: {count} devices have a port each, so at most {MAX_PORT + 1 - count}")


def _check_log_level(name: str) -> None:
    """Raises `InvalidSettings` for a name that logging does not have."""
    if name.upper() not in logging.getLevelNamesMapping():
        raise InvalidSettings(f"--log-level: must be DEBUG, INFO, WARNING or ERROR, got {name!r}")


def _members(
    assignments: list[DeviceAssignment], name: str, log_level: str, metrics_port: int | None
) -> list[GroupMember]:
    """A member for each device; those of several have names and ports of their own."""
    members = []
    for index, each in enumerate(assignments):
        environment = {**each.environment, "NOCTURNE_DEVICE": each.device}
        if len(assignments) > 1:
            environment["NOCTURNE_WORKER_NAME"] = f"{name}-{each.label.replace(':', '')}-{index}"
        if metrics_port is not None:
            environment["NOCTURNE_METRICS_PORT"] = str(metrics_port + index)
        members.append(GroupMember(each.label, partial(_serve, environment, log_level)))
    return members


def _serve(environment: dict[str, str], log_level: str, announce: Callable[[], None]) -> int:
    """Runs the worker of one device in this process, a child of the group; returns its exit code."""
    os.environ.update({**environment, "NOCTURNE_PARENT_PID": str(os.getppid())})
    code = _run_celery(log_level, announce)
    from worker.tasks import has_lost_engine, rejection  # noqa: PLC0415 - reads the environment set above

    if (reason := rejection()) is not None:
        say(Settings(), reason, logging.ERROR)
        return REFUSED
    return EX_FAILURE if has_lost_engine() else code


def _say(message: str) -> None:
    write_line(f"worker: {message}")


def _run_celery(log_level: str, announce: Callable[[], None]) -> int:
    """Runs the Celery worker until it is stopped; returns its exit code."""
    from celery.signals import worker_ready
    from celery.utils.nodenames import default_nodename, host_format

    from worker.celery import app as celery_app  # noqa: PLC0415 - reads the environment set above
    from worker.signals import keep_to_sigterm, say_safely

    settings = Settings()
    set_up_log(settings, os.getpid())
    name = f"{settings.worker_name or f'{settings.device}-{os.getpid()}'}@%h"
    worker = celery_app.Worker(
        hostname=host_format(default_nodename(name)),
        pool_cls="threads",
        concurrency=settings.concurrency,
        loglevel=log_level,
        without_mingle=True,
        without_gossip=True,
        quiet=settings.log_format == "json",  # its banner is for people
    )
    keep_to_sigterm(worker)
    is_json = settings.log_format == "json"
    say_safely(partial(line_of, settings) if is_json else "\n{}".format)
    worker_ready.connect(lambda **_: announce(), weak=False)
    worker.start()
    return int(worker.exitcode or 0)


def main() -> None:
    """Runs the command."""
    isolate_children()
    bound_name_lookups()
    app()
