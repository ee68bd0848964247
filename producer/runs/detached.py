"""`producer run --detach`: a process in the background that decodes a run which is written already.

It is a `producer resume` of its own, in a session of its own: it owns Redis and worker as a run in the foreground does,
waits for another one in its home, and ends in order at SIGTERM. Its log lies in the home.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

from models.child_process import child_environment
from models.settings import Settings
from producer.console import print_and_act, say
from producer.errors import UsageError
from producer.home import holder_of, home_options
from producer.options import OutputOptions
from producer.private_files import lines_from, make_home, open_private
from producer.render import to_json
from producer.runs.interruption import Interruption

START_SECONDS = 20.0
POLL_SECONDS = 0.05


def decode_detached(settings: Settings, run_id: str, output_options: OutputOptions, interruption: Interruption) -> int:
    """Starts the process, waits until it has the home or waits for it, and says how to watch and end it.

    A signal until then ends the process too. Raises `KeyboardInterrupt`.
    """
    home = settings.home.absolute()
    holder = holder_of(home)
    if holder is not None and holder.run == run_id:
        raise UsageError(
            f"{holder} is decoding already; watch it with: producer resume {run_id}{home_options(settings)}"
        )
    make_home(home)
    log = home / "run.log"
    given = settings.model_copy(update={"home": home}).model_dump(exclude_none=True)
    if "grace_seconds" not in settings.model_fields_set:
        given.pop("grace_seconds")
    environment = {
        **child_environment(os.environ),
        **{f"NOCTURNE_{name.upper()}": str(value) for name, value in given.items()},
        "NOCTURNE_RUN_LOG": str(log),
    }
    wanted = [] if output_options.output is None else ["-o", str(output_options.output.absolute())]
    with open_private(log, "ab") as file:
        log_begin = os.fstat(file.fileno()).st_size
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "producer", "resume", run_id, *wanted],
            env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        _await_start(process, settings, run_id, log_begin, interruption.checked_sleep)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    process.returncode = 0  # it outlives this command, which does not wait for it
    if output_options.json:
        print(to_json({"id": run_id, "pid": process.pid, "log": str(log)}))  # noqa: T201
        return 0

    def tell() -> int:
        flags = home_options(settings)
        say(f"run {run_id} is decoded in the background by process {process.pid}, its log is {log}")
        say(f"  watch it:  producer status {run_id} --watch{flags}")
        say(f"  stop it:   kill {process.pid}    (producer resume {run_id}{flags} goes on)")
        say(f"  cancel it: producer cancel {run_id}{flags}")
        return 0

    return print_and_act(run_id, tell)


def _await_start(
    process: subprocess.Popen[bytes], settings: Settings, run_id: str, log_begin: int, sleep: Callable[[float], None]
) -> None:
    """Returns when the process has the home, or another one has. Raises `UsageError` when it has ended."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        holder = holder_of(settings.home)
        if holder is not None and (holder.run == run_id or holder.pid != process.pid):
            return
        if process.poll() not in (None, 0):
            lines = lines_from(settings.home / "run.log", log_begin)
            raise UsageError(f"the process in the background has ended: {lines[-1] if lines else 'without a word'}")
        if process.poll() == 0:
            return
        sleep(POLL_SECONDS)
