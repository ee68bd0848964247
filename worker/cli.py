"""`worker start`: Celery workers with the right options, one per device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from models.settings import Settings

RESTART_SECONDS = 1.0
EX_FAILURE = 1  # Celery met an error that it did not expect

app = typer.Typer(no_args_is_help=True, help="Decodes the jobs that `producer submit` queued.", add_completion=False)


@app.callback()
def _callback() -> None:
    """Keeps `start` a subcommand while it is the only one."""


@app.command()
def start(
    devices: Annotated[str, typer.Option(help="auto, cpu, or a list such as cuda:0,cuda:1: one worker each")] = "auto",
    model: Annotated[str | None, typer.Option(help="hub id or folder of the model to serve")] = None,
    database: Annotated[str | None, typer.Option(help="SQLAlchemy URL; default: <home>/nocturne.db")] = None,
    broker: Annotated[str | None, typer.Option(help="Redis URL")] = None,
    home: Annotated[Path | None, typer.Option(help="where the embedded database lies")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(min=1, help="sequences that decode side by side")] = None,
    kv_memory: Annotated[float | None, typer.Option(help="GiB for the KV cache; default: a share of the free")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16, float32; default: what the device has")] = None,
    num_threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each engine")] = None,
    name: Annotated[str | None, typer.Option(help="how the worker appears in the workers table")] = None,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING, ERROR")] = "INFO",
) -> None:
    """Starts one Celery worker per device and waits for them.

    Example: worker start --model Qwen/Qwen2-0.5B --devices cuda:0,cuda:1 --broker redis://db:6379/0
    """
    options = {
        "model": model, "database": database, "broker": broker, "home": home, "max_num_seqs": max_num_seqs,
        "kv_memory": kv_memory, "dtype": dtype, "num_threads": num_threads, "worker_name": name,
    }  # fmt: skip
    environment = {f"NOCTURNE_{key.upper()}": str(value) for key, value in options.items() if value is not None}
    names = _device_names(devices)
    if len(names) == 1:
        os.environ.update(environment | {"NOCTURNE_DEVICE": names[0]})
        code = _run_celery(log_level)
        if code == EX_FAILURE:
            _start_again()
        raise SystemExit(code)
    else:
        raise SystemExit(_run_several(names, environment, name, log_level))


def _device_names(devices: str) -> list[str]:
    if devices != "auto":
        return [device.strip() for device in devices.split(",") if device.strip()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len([part for part in visible.split(",") if part]) if visible is not None else _count_gpus()
    return [f"cuda:{index}" for index in range(count)] or ["cpu"]


def _count_gpus() -> int:
    """GPUs of this machine, without loading torch."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _run_celery(log_level: str) -> int:
    """Serves until told to stop; the exit code."""
    from celery.utils.nodenames import default_nodename, host_format

    from worker.celery import app as celery_app  # noqa: PLC0415 - reads the environment set above

    settings = Settings()
    name = f"{settings.worker_name or f'{settings.device}-{os.getpid()}'}@%h"
    worker = celery_app.Worker(
        hostname=host_format(default_nodename(name)),
        pool_cls="threads",
        concurrency=settings.concurrency,
        loglevel=log_level,
        without_mingle=True,
        without_gossip=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _start_again() -> None:
    """In this process's place: what Celery cannot go on from, such as a message that is no message, passes so."""
    print(f"worker: Celery failed, starting again in {RESTART_SECONDS:.0f} s", file=sys.stderr, flush=True)  # noqa: T201
    time.sleep(RESTART_SECONDS)
    os.execv(sys.executable, sys.orig_argv)


def _run_several(names: list[str], environment: dict[str, str], name: str | None, log_level: str) -> int:
    """One child per device; a signal goes on to all; ends when all have, with the worst exit code."""
    threads = max(1, (os.cpu_count() or 1) // len(names))
    children = []
    for index, device in enumerate(names):
        of_child = {"NOCTURNE_WORKER_NAME": f"{name or os.uname().nodename}-{index}"}
        if device == "cpu" and "NOCTURNE_NUM_THREADS" not in environment:
            of_child["NOCTURNE_NUM_THREADS"] = str(threads)
        command = [sys.executable, "-m", "worker", "start", "--devices", device, "--log-level", log_level]
        children.append(subprocess.Popen(command, env={**os.environ, **environment, **of_child}))

    def forward(number: int, frame: object) -> None:  # noqa: ARG001
        for child in children:
            child.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    return max(abs(child.wait()) for child in children)


def main() -> None:
    app()
