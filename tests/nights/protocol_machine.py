"""The protocol as a state machine: hypothesis looks for a history of faults after which an invariant does not hold."""

from __future__ import annotations

from abc import abstractmethod

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.nights.protocol_world import SimulatedWorker, World

#: An index into a list of any length.
INDEX = st.integers(0, 11)

#: Steps of the database's clock, in seconds.
STEPS = st.sampled_from([-3600.0, -45.0, -5.0, 5.0, 45.0, 3600.0])


class ProtocolMachine(RuleBasedStateMachine):
    """Any order of work and faults. A subclass makes the world."""

    def __init__(self) -> None:
        super().__init__()
        self.world = self.make_world()

    @abstractmethod
    def make_world(self) -> World:
        """A world at its beginning."""

    def worker(self, index: int) -> SimulatedWorker:
        return self.world.workers[index % len(self.world.workers)]

    @precondition(lambda self: self.world.num_runs < 3)
    @rule(
        num_jobs=st.integers(1, 4),
        num_samples=st.integers(1, 2),
        deadline=st.sampled_from([None, None, 20.0, 1e5]),
        max_running=st.sampled_from([None, None, 1, 2]),
    )
    def submit(self, num_jobs: int, num_samples: int, deadline: float | None, max_running: int | None) -> None:
        self.world.submit(num_jobs, num_samples, deadline, max_running)

    @rule(breaks_after=st.sampled_from([None, None, None, 0, 1]))
    def send(self, breaks_after: int | None) -> None:
        self.world.send(breaks_after)

    @precondition(lambda self: self.world.queue)
    @rule(message=INDEX, index=INDEX)
    def deliver(self, message: int, index: int) -> None:
        """Any message, in any order, to any worker."""
        worker = self.worker(index)
        if worker.can_write:
            chunk = self.world.queue.pop(message % len(self.world.queue))
            self.world.delivered.append(chunk)
            worker.receive(chunk)

    @precondition(lambda self: self.world.delivered)
    @rule(message=INDEX)
    def deliver_again(self, message: int) -> None:
        """Redis gives a message out once more, however old it is."""
        self.world.queue.append(self.world.delivered[message % len(self.world.delivered)])

    @precondition(lambda self: self.world.queue)
    @rule(message=INDEX, are_all_lost=st.booleans())
    def lose_messages(self, message: int, are_all_lost: bool) -> None:
        if are_all_lost:
            self.world.queue.clear()
        else:
            self.world.queue.pop(message % len(self.world.queue))

    @rule(index=INDEX, count=st.integers(1, 4), invalid=st.sampled_from([None, None, None, 0]))
    def finish(self, index: int, count: int, invalid: int | None) -> None:
        worker = self.worker(index)
        if worker.can_write and (claims := worker.running[:count]):
            worker.finish(claims, None if invalid is None else claims[0].job_id)

    @rule(index=INDEX)
    def run_alone(self, index: int) -> None:
        if self.worker(index).can_write:
            self.worker(index).run_alone()

    @rule(num_intervals=st.integers(1, 5), order=st.integers(0, 3))
    def pass_time(self, num_intervals: int, order: int) -> None:
        self.world.rng.seed(order)
        self.world.pass_time(num_intervals)

    @rule(seconds=STEPS)
    def step_clock(self, seconds: float) -> None:
        self.world.step_clock(seconds)

    @rule(index=INDEX, encoding=st.sampled_from([None, 0]))
    def engine_dies(self, index: int, encoding: int | None) -> None:
        worker = self.worker(index)
        if worker.can_write and (running := worker.running):
            worker.lose_engine(None if encoding is None else running[0])

    @rule(index=INDEX)
    def worker_is_killed(self, index: int) -> None:
        self.world.kill(self.worker(index))

    @precondition(lambda self: self.world.num_runs)
    @rule(index=INDEX, num_intervals=st.integers(4, 8))
    def all_are_killed_and_missed(self, index: int, num_intervals: int) -> None:
        """The next workers notice, and one of them is given everything."""
        for worker in list(self.world.workers):
            self.world.kill(worker)
        self.world.pass_time(num_intervals)
        self.world.send()
        while self.world.queue:
            self.worker(index).receive(self.world.queue.pop())

    @rule(index=INDEX)
    def worker_stops_in_order(self, index: int) -> None:
        if self.worker(index).can_write:
            self.worker(index).stop()

    @rule(index=INDEX, is_mute=st.booleans())
    def worker_is_suspended_or_mute(self, index: int, is_mute: bool) -> None:
        worker = self.worker(index)
        worker.note_fault()
        if is_mute:
            worker.is_heard = False
        else:
            worker.is_awake = False

    @rule()
    def all_are_suspended(self) -> None:
        """A laptop that is closed: nobody takes part, the database's clock goes on."""
        self.world.step_clock(3600.0)

    @rule(index=INDEX)
    def worker_goes_on(self, index: int) -> None:
        self.worker(index).is_awake = self.worker(index).is_heard = True

    @rule(num_intervals=st.integers(1, 30))
    def tables_are_locked(self, num_intervals: int) -> None:
        """Nobody's heartbeat gets through for so long."""
        self.world.is_locked = True
        self.world.pass_time(num_intervals)
        self.world.is_locked = False

    @precondition(lambda self: self.world.num_runs)
    @rule(number=INDEX)
    def cancel(self, number: int) -> None:
        self.world.cancel(number % self.world.num_runs + 1)

    @precondition(lambda self: self.world.num_runs)
    @rule(number=INDEX, is_paused=st.booleans())
    def pause(self, number: int, is_paused: bool) -> None:
        self.world.pause(number % self.world.num_runs + 1, is_paused=is_paused)

    @precondition(lambda self: self.world.num_runs)
    @rule(number=INDEX)
    def retry(self, number: int) -> None:
        self.world.retry(number % self.world.num_runs + 1)

    @invariant()
    def holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        note("all faults end")
        self.world.run_to_the_end()
        self.world.check()
