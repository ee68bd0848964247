"""The outputs of ended requests, made and sent beside the steps of the engine.

A step of 256 sequences takes a GPU some milliseconds, and so do text and trace of some long answers, at 1 µs a token
and more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from threading import Lock
from time import monotonic

from worker.critical_thread import CriticalThread
from worker.engine.engine import Ended
from worker.engine.request import RequestOutput, describe_error
from worker.engine_process.protocol import Crashed, Finished

#: The most that counts of the time between two looks at an output: a suspended process has not hung.
MAX_INTERVAL_SECONDS = 10.0


class SharedConnection:
    """The engine's end of the connection, on which its threads send."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = Lock()

    def send(self, message: object) -> None:
        """Sends a message whole. Raises `OSError` where the parent is gone."""
        content = ForkingPickler.dumps(message)  # a long trace takes its time: nobody else is to wait for that
        with self._lock:
            self._connection.send_bytes(content)

    def send_end(self, error: Exception) -> None:
        """Says which unexpected error ends the process. Raises `OSError` where the parent is gone."""
        self.send(Crashed(f"the engine ended with {describe_error(error)}"))


class Finisher:
    """A thread that makes the outputs of ended requests, in their order, and sends each as soon as it is made.

    One that takes longer than `timeout` seconds hangs: the engine ends, and the supervisor finds the job among those
    that it had.
    """

    def __init__(self, sender: SharedConnection, output_of: Callable[[Ended], RequestOutput], timeout: float) -> None:
        self._sender = sender
        self._output_of = output_of
        self._timeout = timeout
        self._ended: SimpleQueue[Ended | None] = SimpleQueue()
        self._computing = Lock()
        self._began: float | None = None  # the output that is being made
        self._watched: float | None = None  # that of the last look, and the time that it had until then
        self._waited, self._looked = 0.0, monotonic()
        self._thread = CriticalThread(target=self._run, name="finisher", daemon=True)
        self._thread.start()

    def add(self, ended: Iterable[Ended]) -> None:
        for each in ended:
            self._ended.put(each)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No output is made within: where the process dies, it is clear of whose job."""
        with self._computing:
            yield

    def drain(self) -> None:
        """Returns when all outputs are sent. Raises `TimeoutError` where one hangs."""
        self._ended.put(None)
        while self._thread.is_alive():
            self._thread.join(1.0)
            self.check()

    def close(self, seconds: float) -> None:
        """Returns when all outputs are sent, or after so many seconds."""
        self._ended.put(None)
        self._thread.join(seconds)

    def check(self) -> None:
        """Raises `TimeoutError` where an output hangs: the steps go on, so nobody else would see it."""
        now, began = monotonic(), self._began
        interval, self._looked = min(now - self._looked, MAX_INTERVAL_SECONDS), now
        self._waited = self._waited + interval if began is not None and began == self._watched else 0.0
        self._watched = began
        if self._waited > self._timeout:
            raise TimeoutError(f"the text of an answer was not made in {self._timeout:g} s")

    def _run(self) -> None:
        while (ended := self._ended.get()) is not None:
            try:
                output = self._output(ended)
            except Exception as error:
                self._sender.send_end(error)
                raise
            try:
                self._sender.send(Finished((output,)))
            except OSError:
                return  # the parent is gone: nobody reads the answers

    def _output(self, ended: Ended) -> RequestOutput:
        with self._computing:
            self._began = monotonic()
            output = self._output_of(ended)
            self._began = None
        return output
