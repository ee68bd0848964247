"""Jobs in flight: each leaves once, and the last of a chunk ends its wait."""

from __future__ import annotations

from datetime import UTC, datetime
from threading import Thread

from models.message import JobMessage
from models.params import GenerationParams
from tests.support.processes import HANG_SECONDS
from worker.in_flight import InFlightJobs
from worker.storage.claims import Claim


def claim_of(job_id: int, attempt: int = 1) -> Claim:
    now, job = datetime.now(UTC), JobMessage(id=job_id, prompt="x", params=GenerationParams())
    return Claim(job_id, "run", attempt, 0, False, now, 5, is_limited=False, row={}, job=job)


def test_a_chunk_waits_for_its_last_job() -> None:
    jobs = InFlightJobs()
    first, second = claim_of(1), claim_of(2)
    wait = jobs.add([first, second])
    waiting = Thread(target=wait.wait, daemon=True)
    waiting.start()
    jobs.release(first)
    jobs.release(first)  # a second time changes nothing
    waiting.join(timeout=0.05)
    assert waiting.is_alive()
    jobs.release(second)
    waiting.join(timeout=HANG_SECONDS)
    assert not waiting.is_alive()
    assert len(jobs) == 0


def test_an_earlier_attempt_does_not_release_a_later_one() -> None:
    jobs = InFlightJobs()
    early, late = claim_of(1), claim_of(1, attempt=2)
    jobs.add([early])
    jobs.release(early)
    jobs.add([late])
    jobs.release(early)
    assert jobs.claims() == jobs.claims_of([1, 99]) == [late]
