"""The self check of a model has time enough here."""

from __future__ import annotations

import pytest

from tests.support.processes import HANG_SECONDS
from worker.engine.loading import self_check


@pytest.fixture(autouse=True)
def _time_for_the_self_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine its twenty seconds may pass, and the path that is taken then is not the one it finds."""
    monkeypatch.setattr(self_check, "SECONDS", HANG_SECONDS)
