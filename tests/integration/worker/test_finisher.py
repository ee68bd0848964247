"""Texts and traces are made beside the steps of the engine: a slow one holds up no step, and a hanging one is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from multiprocessing import Pipe
from threading import Event, Thread
from typing import Any
from unittest.mock import patch

import pytest

from models.message import JobMessage
from models.params import GenerationParams
from tests.conftest import TOY_MODEL
from tests.support.processes import HANG_SECONDS
from worker.engine.config import EngineConfig
from worker.engine.engine import Ended, Engine
from worker.engine.model_loader import LoadedModel, load_model
from worker.engine.request import RequestOutput
from worker.engine.stats import Stats
from worker.engine_process import finisher
from worker.engine_process.loop import serve
from worker.engine_process.protocol import Crashed, Finished, Stop, Submit

SHORT, LONG = 2, 2000  # tokens


@pytest.fixture(scope="module")
def toy() -> LoadedModel:
    return load_model(str(TOY_MODEL), "cpu", "float32")


class SlowTexts:
    """An engine in a thread whose outputs wait for `go`."""

    def __init__(self, loaded: LoadedModel, output_timeout: float) -> None:
        self.engine = Engine(loaded, EngineConfig(max_num_seqs=4, kv_memory=0.05))
        self._output_timeout = output_timeout
        self.go = Event()
        self.raised: list[Exception] = []
        self._output_of = self.engine.output_of
        self.engine.output_of = self._slow  # type: ignore[method-assign]
        self.ours, self._theirs = Pipe()
        self.thread = Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _slow(self, ended: Ended) -> RequestOutput:
        assert self.go.wait(HANG_SECONDS)
        return self._output_of(ended)

    def _serve(self) -> None:
        try:
            serve(self._theirs, self.engine, self._output_timeout)
        except Exception as error:  # noqa: BLE001 - the process would end with it
            self.raised.append(error)
        self._theirs.close()

    def submit(self, number: int, max_new_tokens: int) -> None:
        params = GenerationParams(max_new_tokens=max_new_tokens, ignore_eos=True)
        self.ours.send(Submit((JobMessage(id=number, prompt="Once", params=params),), priority=5))

    def said(self) -> Iterator[Any]:
        """The messages of the engine, until its end."""
        while self.ours.poll(HANG_SECONDS):
            try:
                yield self.ours.recv()
            except EOFError:
                return
        raise AssertionError("the engine is silent")


@pytest.fixture
def slow(toy: LoadedModel, request: pytest.FixtureRequest) -> Iterator[SlowTexts]:
    made = SlowTexts(toy, getattr(request, "param", HANG_SECONDS))
    yield made
    made.go.set()
    made.thread.join(HANG_SECONDS)
    made.ours.close()


def finished(message: object) -> list[int]:
    return [output.request_id for output in message.outputs] if isinstance(message, Finished) else []


def test_steps_go_on_while_a_text_is_made(slow: SlowTexts) -> None:
    slow.submit(1, SHORT)
    slow.submit(2, LONG)
    messages = slow.said()
    while not isinstance(message := next(messages), Stats) or message.counts.num_steps < 10 * SHORT:
        assert not isinstance(message, Finished)  # nothing is sent while the first text is made
    slow.go.set()
    slow.ours.send(Stop())
    assert [number for message in messages for number in finished(message)] == [1, 2]
    assert slow.raised == []


def test_the_end_of_the_engine_waits_for_its_texts(slow: SlowTexts) -> None:
    for number in range(3):
        slow.submit(number, SHORT)
    slow.ours.send(Stop())
    while slow.engine.has_work or not slow.engine.stats.num_steps:
        assert slow.thread.is_alive()
    slow.go.set()
    assert sorted(number for message in slow.said() for number in finished(message)) == [0, 1, 2]


@pytest.mark.parametrize("slow", [0.0], indirect=True)
def test_a_text_that_hangs_ends_the_engine(slow: SlowTexts) -> None:
    with patch("worker.engine_process.loop.CLOSING_SECONDS", 0.0):
        slow.submit(1, SHORT)
        slow.submit(2, LONG)
        *_, last = slow.said()
    assert isinstance(last, Crashed) and "the text of an answer was not made in 0 s" in last.reason
    (error,) = slow.raised
    assert isinstance(error, TimeoutError)


@pytest.mark.parametrize("slow", [0.0], indirect=True)
def test_a_text_that_hangs_ends_an_engine_that_is_told_to_stop(slow: SlowTexts) -> None:
    with patch("worker.engine_process.loop.CLOSING_SECONDS", 0.0):
        slow.submit(1, SHORT)
        slow.ours.send(Stop())
        *_, last = slow.said()
    assert isinstance(last, Crashed) and "was not made in 0 s" in last.reason


def test_an_error_in_a_text_is_the_last_word_of_the_engine() -> None:
    ours, theirs = Pipe()
    raised: list[BaseException] = []

    class Recorded(Thread):
        """`CriticalThread` would end the process."""

        def run(self) -> None:
            try:
                super().run()
            except ZeroDivisionError as error:
                raised.append(error)

    def output_of(ended: Any) -> RequestOutput:
        return RequestOutput(ended // 0, 0)

    with patch.object(finisher, "CriticalThread", Recorded):
        made = finisher.Finisher(finisher.SharedConnection(theirs), output_of, timeout=300.0)
    made.add([1])  # type: ignore[list-item]
    made.drain()
    assert len(raised) == 1
    theirs.close()
    assert ours.recv() == Crashed("the engine ended with ZeroDivisionError: integer division or modulo by zero")
    ours.close()


def test_a_suspended_engine_has_not_hung() -> None:
    """As after SIGSTOP, or in a container that was paused: its clock goes on."""
    now, go, has_begun = [0.0], Event(), Event()

    def output_of(ended: Any) -> RequestOutput:
        has_begun.set()
        assert go.wait(HANG_SECONDS)
        return RequestOutput(ended, 0)

    ours, theirs = Pipe()
    with patch.object(finisher, "monotonic", lambda: now[0]):
        made = finisher.Finisher(finisher.SharedConnection(theirs), output_of, timeout=300.0)
        made.add([1])  # type: ignore[list-item]
        assert has_begun.wait(HANG_SECONDS)
        for _ in range(3):
            made.check()
            now[0] += 100_000
        with pytest.raises(TimeoutError):
            for _ in range(40):
                made.check()
                now[0] += 9
        go.set()
        made.close(HANG_SECONDS)
    assert ours.recv().outputs[0].request_id == 1
    ours.close()
    theirs.close()


def test_no_output_is_made_while_a_job_is_encoded(slow: SlowTexts) -> None:
    """If the process dies then, the job that was encoded did it."""
    overlaps: list[bool] = []
    is_encoding = Event()
    submit, output_of = slow.engine.submit, slow._output_of

    def submit_slowly(request: Any) -> None:
        is_encoding.set()
        time.sleep(0.01)
        submit(request)
        is_encoding.clear()

    def noted(ended: Ended) -> RequestOutput:
        overlaps.append(is_encoding.is_set())
        return output_of(ended)

    slow.engine.submit, slow._output_of = submit_slowly, noted  # type: ignore[method-assign]
    slow.go.set()
    for number in range(20):
        slow.submit(number, SHORT)
    slow.ours.send(Stop())
    assert sorted(number for message in slow.said() for number in finished(message)) == list(range(20))
    assert overlaps == [False] * 20


def test_requests_that_ended_before_a_crash_are_sent(slow: SlowTexts) -> None:
    launch = slow.engine._backend.launch

    def launch_twice(*arguments: Any) -> Any:
        if slow.engine.stats.num_steps > 2 * SHORT:
            slow.go.set()
            raise ZeroDivisionError("poison")
        return launch(*arguments)

    with patch.object(slow.engine._backend, "launch", launch_twice):
        slow.submit(1, SHORT)
        slow.submit(2, LONG)
        messages = list(slow.said())
    assert isinstance(messages[-1], Crashed) and "ZeroDivisionError" in messages[-1].reason
    assert [number for message in messages for number in finished(message)] == [1]
