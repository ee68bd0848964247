"""The options of an engine that a person sets. Declared here once: settings and the engine's own values carry them.

Description and bounds are those of the option of that name, in `worker start` and in `producer run` alike. Loads
neither torch nor pydantic_settings.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from models.states import Quantization

#: One worker's device; several are separated by commas.
DEVICE = r"(cpu|cuda|cuda:\d+(\+cuda:\d+)*)"
DEVICES = re.compile(rf"auto|{DEVICE}(,{DEVICE})*")


def checked_devices(devices: str) -> str:
    """The devices without spaces. Raises `ValueError`."""
    compact = devices.replace(" ", "")
    if DEVICES.fullmatch(compact) is None:
        raise ValueError("must be auto, cpu, cuda:0 or a list of devices")
    return compact


class SizeOptions(BaseModel):
    """The work that an engine does at once, and the memory it takes for it."""

    max_num_seqs: int = Field(default=64, ge=1, description="sequences that decode side by side")
    kv_memory: float | None = Field(
        default=None, gt=0, description="GiB for the KV cache; default: a share of the free"
    )
    gpu_memory_utilization: float = Field(  # for weights, step and KV cache
        default=0.9, gt=0, le=1, description="share of a GPU's memory to take; default: 0.9"
    )
    prefill_tokens: int = Field(default=2048, ge=16)  # prompt tokens in one step, at most


class EngineOptions(SizeOptions):
    """The options that an engine process is started with."""

    model: str  # hub id or folder
    device: Annotated[str, AfterValidator(checked_devices)] = Field(
        default="auto",
        description="auto, cpu, or a list: cuda:0,cuda:1 is one worker each, cuda:0+cuda:1 one on both",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="bfloat16, float16, float32; default: what the device has"
    )
    quantize: Quantization = Field(
        default="none", description="int8: faster on a CPU, and other answers; default: none"
    )
    deterministic: bool = Field(default=False, description="batch-invariant answers, on a GPU too; slower there")
    num_threads: int | None = Field(default=None, ge=1, description="CPU threads of each engine; default: torch's")
