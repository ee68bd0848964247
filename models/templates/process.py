"""The parent's side of the process that renders templates: started at the first one, again after a death."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from threading import Lock
from typing import Any

from models.child_process import child_environment

#: For one template: processor time, and memory beyond that of the idle process.
MAX_SECONDS = 5.0
MAX_BYTES = 512 * 2**20


class TemplateFailed(Exception):
    """A template raised; `kind` is its exception's name."""

    def __init__(self, kind: str, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.kind, self.line = kind, line


class TemplateExceeded(Exception):
    """A template took more than its time or memory, or ended its process."""


class TemplateProcess:
    """A child that renders; any thread may ask it. Bounds are per request."""

    def __init__(self, max_seconds: float = MAX_SECONDS, max_bytes: int = MAX_BYTES) -> None:
        self._limits = {"max_seconds": max_seconds, "max_bytes": max_bytes}
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = Lock()
        atexit.register(self.close)

    def ask(self, kind: str, **request: Any) -> Any:
        """The value of a request. Raises `TemplateFailed` and `TemplateExceeded`."""
        line = json.dumps({"kind": kind, **self._limits, **request}, default=str).encode() + b"\n"
        with self._lock:
            answer = self._exchange(line)
        if "value" in answer:
            return answer["value"]
        if "error" in answer:
            raise TemplateFailed(answer["error"], answer["message"], answer["line"])
        if "is_too_long" in answer:
            raise TemplateExceeded("makes more than 16 MiB of text")
        raise TemplateExceeded(f"takes more than {self._limits['max_bytes'] / 2**20:,.0f} MiB of memory")

    def _exchange(self, line: bytes) -> dict[str, Any]:
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        answer = b""
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(line)
                process.stdin.flush()
                answer = process.stdout.readline()
        except BaseException:
            self.close()  # its answer would be taken for that of the next request
            raise
        if not answer.endswith(b"\n"):
            raise self._exceeded(process)
        found: dict[str, Any] = json.loads(answer)
        if "is_out_of_memory" in found:
            self.close()  # a fresh one has none to give back
        return found

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is not None:
            self.close()  # killed while it was idle: the next template is not at fault
        if self._process is None or self._owner != os.getpid():  # a forked process has a child of its own
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "models.templates.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=child_environment(os.environ),
            )
        return self._process

    def _exceeded(self, process: subprocess.Popen[bytes]) -> TemplateExceeded:
        self.close()
        if process.returncode == -signal.SIGPROF:
            return TemplateExceeded(f"takes more than {self._limits['max_seconds']:g} s of processor time")
        return TemplateExceeded(f"ended the process that renders it (exit code {process.returncode})")

    def close(self) -> None:
        """Ends the process; the next request starts another one."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe and pipe.close()
        try:
            process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


#: The one of this process.
renderer_process = TemplateProcess()
