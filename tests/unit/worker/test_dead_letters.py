"""The box of dead letters while the database is away."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.unit.worker.storage.test_outages import locked
from worker.messages.dead_letters import MAX_WAITING, DeadLetterBox
from worker.storage.dead_letter_store import DeadLetterStore
from worker.storage.outages import DatabaseOutages


class AwayOnce:
    """A store whose database is away when it is first asked; a letter comes meanwhile."""

    def __init__(self, box: DeadLetterBox) -> None:
        self.reasons: list[str] | None = None
        self._box = box

    def add(self, letters: list[dict[str, Any]]) -> None:
        if self.reasons is None:
            self.reasons = []
            self._box.put("queue", "new", b"x")
            raise locked()
        self.reasons += [letter["reason"] for letter in letters]


def test_letters_of_an_outage_are_told_once_and_the_oldest_make_room(caplog: pytest.LogCaptureFixture) -> None:
    box = DeadLetterBox()
    store, outages = AwayOnce(box), DatabaseOutages()
    for number in range(MAX_WAITING):
        box.put("queue", f"old {number}", b"x")
    box.close()  # it does not wait for the end of an outage
    with caplog.at_level("WARNING", logger="worker.messages.dead_letters"):
        for _ in range(3):
            box._store(cast(DeadLetterStore, store), outages)
    assert store.reasons == [*(f"old {number}" for number in range(1, MAX_WAITING)), "new"]
    told = [record.args for record in caplog.records if record.name == "worker.messages.dead_letters"]
    assert told == [(MAX_WAITING, f"old {MAX_WAITING - 1}"), (1, "new")]
