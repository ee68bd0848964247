"""A machine's GPUs, as far as they are known without torch: whether there is one, and which cards there are."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from producer.errors import UsageError

#: Device files of NVIDIA's driver, of its small boards, of WSL, and of AMD's driver, which torch calls CUDA too.
DEVICE_FILES = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd")
DRIVER_LIBRARY = "libcuda.so.1"

#: The fields of a card that nvidia-smi is asked for, and the seconds it gets.
FIELDS, SECONDS = "index,name,compute_cap,memory.total,memory.used", 20

#: Compute capabilities from which a card computes in bfloat16, and attention has a kernel.
AMPERE = 8.0


@dataclass(frozen=True)
class Card:
    """One GPU, by nvidia-smi's number, with its memory in MiB."""

    index: str
    name: str
    capability: float
    total: float
    used: float

    @property
    def dtype(self) -> str:
        """The type of numbers that a worker takes where none is given."""
        return "bfloat16" if self.capability >= AMPERE else "float16"


def card_findings() -> Iterator[tuple[bool, str]]:
    """Whether each card suits, with a message; one more where their types differ. None without a GPU."""
    try:
        cards = _cards() if _may_have_gpu() else []
    except FileNotFoundError:
        yield True, "there may be one, and nvidia-smi, which would tell, is not installed"
        return
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stdout", None) or str(error)).strip().splitlines()
        yield False, f"nvidia-smi does not tell which there are: {said[0] if said else type(error).__name__}"
        return
    for card in cards:
        line = f"{card.index}: {card.name}, {card.dtype}, {card.used / 1024:.1f} of {card.total / 1024:.1f} GiB in use"
        is_slow = card.capability < AMPERE
        yield not is_slow, line + is_slow * "; attention has no kernel there, so workers need --allow-slow"
    if len({card.dtype for card in cards}) > 1:
        named = " and ".join(f"{card.index} in {card.dtype}" for card in cards)
        problem = f"an answer depends on the card that decodes it, for they compute in different types ({named})"
        yield False, f"{problem}; give all workers the same --dtype, or name the cards of one kind in --devices"


def _cards() -> list[Card]:
    """The cards that nvidia-smi lists."""
    command = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    return [_card(line) for line in done.stdout.splitlines() if line.strip()]


def _card(line: str) -> Card:
    """Raises `ValueError` for a line of other fields, or with a number that the driver does not know."""
    index, *name, capability, total, used = (field.strip() for field in line.split(","))
    return Card(index, ",".join(name), float(capability), float(total), float(used))


def check_device(device: str) -> None:
    """Raises `UsageError` for a GPU on a machine that has none."""
    if "cuda" in device and not _may_have_gpu():
        raise UsageError(
            f"--device {device}: this machine has no GPU (no /dev/nvidia*, no {DRIVER_LIBRARY}); "
            "leave --device out to decode on the CPU"
        )


def _may_have_gpu() -> bool:
    if any(any(Path("/dev").glob(pattern)) for pattern in DEVICE_FILES):
        return True
    try:
        ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return False
    return True
