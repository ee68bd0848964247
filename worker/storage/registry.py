"""A worker's rows about itself: its registration, its heartbeat, the environment that decodes its results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from models.database.clock import database_timestamp, lease_end
from models.database.id_lists import is_among
from models.schema.job import Job
from models.schema.result import Environment
from models.schema.worker import Worker
from worker.storage.claims import Claim, held_claims, in_statements


@dataclass(frozen=True)
class WorkerLoad:
    """The part of a worker's row that changes with each heartbeat, named as its columns."""

    tokens_per_second: float = 0.0
    num_steps: int = 0
    mean_running: float = 0.0
    results_held: int = 0


class Registry:
    """The row of one worker; all its times are the database's."""

    def __init__(self, database: Engine, worker: str, lease_seconds: float) -> None:
        self._database = database
        self._worker = worker
        self._lease_seconds = lease_seconds
        self.num_beats = 0  # heartbeats that were committed
        self._identity: dict[str, Any] | None = None  # as it was registered

    def register(
        self, *, host: str, device: str, model: str, max_num_seqs: int, environment_id: str | None = None
    ) -> None:
        """Enters this worker, replacing an earlier one of the same name."""
        self._identity = {
            "host": host, "device": device, "model": model, "max_num_seqs": max_num_seqs,
            "environment_id": environment_id,
        }  # fmt: skip
        row = {
            **self._identity,
            "started_at": database_timestamp(), "seen_at": database_timestamp(), "stopped_at": None,
            "draining_since": None, **asdict(WorkerLoad()),
        }  # fmt: skip
        # A worker of the same name may be starting at this moment: the second one updates its row.
        with suppress(IntegrityError), self._database.begin() as connection:
            connection.execute(insert(Worker).values(name=self._worker, **row))
            return
        with self._database.begin() as connection:
            connection.execute(update(Worker).where(self._is_own).values(row))

    def enter_environment(self, environment: dict[str, Any]) -> str:
        """Inserts the row that results refer to, unless it exists; returns its id."""
        content = json.dumps(environment, sort_keys=True)
        environment_id = hashlib.blake2b(content.encode(), digest_size=12).hexdigest()
        # Usually the row exists, and another worker may be inserting it at this moment.
        with suppress(IntegrityError), self._database.begin() as connection:
            connection.execute(insert(Environment).values(id=environment_id, **environment))
        return environment_id

    def heartbeat(self, claims: Sequence[Claim], load: WorkerLoad) -> bool:
        """Renews this worker's leases, then records that it lives; returns whether a person has it drained."""
        self._renew(claims)
        # A person who has locked the row must not hold up the leases.
        row = select(Worker.name).where(self._is_own).with_for_update(skip_locked=True)
        # Another worker of this name, which this one replaces, may have signed off meanwhile.
        values = {"seen_at": database_timestamp(), "stopped_at": None, **asdict(load)}
        with self._database.begin() as connection:
            alive = update(Worker).where(Worker.name.in_(row)).values(values).returning(Worker.draining_since)
            beat = connection.execute(alive).first()
            is_gone = beat is None and connection.execute(select(Worker.name).where(self._is_own)).first() is None
        if is_gone and self._identity is not None:  # the database was restored from a copy
            self.register(**self._identity)
        self.num_beats += 1
        return beat is not None and beat.draining_since is not None

    @property
    def _is_own(self) -> ColumnElement[bool]:
        return Worker.name == self._worker

    def sign_off(self) -> None:
        """Records that the worker ended in order."""
        with self._database.begin() as connection:
            connection.execute(
                update(Worker)
                .where(self._is_own)
                .values(
                    seen_at=database_timestamp(), stopped_at=database_timestamp(), tokens_per_second=0.0, results_held=0
                )
            )

    def _renew(self, claims: Sequence[Claim]) -> None:
        if not claims:
            return
        with self._database.begin() as connection:
            # A job that is being committed is locked and needs no lease.
            held = held_claims(connection, self._worker, claims, lock=True, skip_locked=True)
            for ids in in_statements([claim.job_id for claim in held]):
                lease = lease_end(self._lease_seconds)
                connection.execute(update(Job).where(is_among(Job.id, ids)).values(lease_expires_at=lease))
