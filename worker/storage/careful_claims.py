"""Claims of a chunk of which the database may refuse one row to everybody: that job fails, the others go on."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError

from models.database.faults import first_line, is_value_fault
from worker.storage.claims import Claim
from worker.storage.job_store import JobStore
from worker.storage.outages import DatabaseOutages, RetryAborted

logger = logging.getLogger(__name__)


def claim_carefully(store: JobStore, outages: DatabaseOutages, job_ids: Sequence[int]) -> list[Claim]:
    """Claims those of the jobs that may be claimed, however long the database is away. Raises `RetryAborted`."""

    def attempt() -> list[Claim] | DBAPIError:
        try:
            return store.claim(job_ids)
        except DBAPIError as error:
            if not is_value_fault(error):
                raise
            return error

    found = outages.retry_until_available(attempt)
    if isinstance(found, list):
        return found
    if len(job_ids) > 1:
        return _claim_each(store, outages, job_ids)
    reason = f"its row cannot be claimed: {first_line(found.orig)}"
    logger.error("job %d fails: %s", job_ids[0], reason)
    outages.retry_until_available(lambda: store.fail_queued(job_ids[0], "StorageError", reason))
    return []


def _claim_each(store: JobStore, outages: DatabaseOutages, job_ids: Sequence[int]) -> list[Claim]:
    claims: list[Claim] = []
    try:
        for job_id in job_ids:
            claims += claim_carefully(store, outages, [job_id])
    except RetryAborted:
        with outages.noted():  # else the leases run out, which counts as a loss
            store.requeue(claims, "the worker stopped")
        raise
    return claims
