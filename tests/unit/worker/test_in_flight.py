"""Jobs in flight: each leaves once, and the last of a chunk ends its wait."""

from __future__ import annotations

from datetime import UTC, datetime
from threading import Thread

from worker.in_flight import InFlightJobs
from worker.storage.job_store import Claim


def claim_of(job_id: int, attempt: int = 1) -> Claim:
    return Claim(job_id, "run", attempt, num_crashes=0, is_suspect=False, created_at=datetime.now(UTC))


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
    waiting.join(timeout=60)
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
