"""Memory that shows what a kernel did not write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors hold NaN until they are written."""
    exact = Tensor.new_empty

    def poisoned(tensor: Tensor, *sizes: Any, **options: Any) -> Tensor:
        made = exact(tensor, *sizes, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(Tensor, "new_empty", poisoned)
