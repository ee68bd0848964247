"""The things a device was told to do: kernels, copies either way, and each wait of the host with its place."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

PRODUCT = str(Path(__file__).parents[3] / "worker")


@dataclass
class Activity:
    """Counts since it was made or cleared; a recorded graph is one launch, whatever is in it."""

    kernels: Counter[str] = field(default_factory=Counter)  # launched outside of graphs
    graph_launches: int = 0
    copies_to_device: int = 0
    copies_to_host: int = 0
    waits: list[str] = field(default_factory=list)  # synchronizations and blocking copies, each with its place
    refuses_waits: bool = False

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]

    @property
    def num_kernels(self) -> int:
        return self.kernels.total()

    def wait(self, what: str) -> None:
        if self.refuses_waits:
            raise RuntimeError(f"called a synchronizing CUDA operation: {what} at {place()}")
        self.waits.append(f"{what} at {place()}")


def place() -> str:
    """The line of the product that is running, as file:line."""
    frame = sys._getframe(1)
    while frame.f_back is not None and not frame.f_code.co_filename.startswith(PRODUCT):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
