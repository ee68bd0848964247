"""The options of an engine that a person sets. Declared here once: settings and the engine's own values carry them.

Description and bounds are those of the option of that name, in `worker start` and in `producer run` alike. Loads
neither torch nor pydantic_settings.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal, TypedDict

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


class DefaultSizes(TypedDict):
    """The sizes that depend on the device, where none are given."""

    max_num_seqs: int
    prefill_tokens: int


def default_sizes(device: str) -> DefaultSizes:
    """The sizes for a device by its name, such as `cpu`, `cuda:0` or `cuda:0+cuda:1`."""
    if device.startswith("cuda"):
        return {"max_num_seqs": 256, "prefill_tokens": 8192}
    return {"max_num_seqs": 64, "prefill_tokens": 2048}


class SizeOptions(BaseModel):
    """The work that an engine does at once, and the memory it takes for it."""

    max_num_seqs: int | None = Field(
        default=None, ge=1, description="sequences that decode side by side; default: 64, on a GPU 256"
    )
    max_model_len: int | None = Field(
        default=None, ge=2, description="tokens of prompt and answer together, at most; default: the model's window"
    )
    kv_memory: float | None = Field(
        default=None, gt=0, description="GiB for the KV cache; default: a share of the free"
    )
    gpu_memory_utilization: float = Field(  # for weights, step and KV cache
        default=0.9, gt=0, le=1, description="share of a GPU's memory to take; default: 0.9"
    )
    prefill_tokens: int | None = Field(default=None, ge=16)  # prompt tokens in one step, at most


class EngineOptions(SizeOptions):
    """The options that an engine process is started with."""

    model: str  # hub id or folder
    device: Annotated[str, AfterValidator(checked_devices)] = Field(
        default="auto",
        description="auto, cpu, or a list: cuda:0,cuda:1 is one worker each, cuda:0+cuda:1 one on both, by turns",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="bfloat16, float16, float32; default: what the device has"
    )
    quantize: Quantization = Field(
        default="none", description="int8: faster on a CPU, and other answers; default: none"
    )
    adapter: Annotated[str, AfterValidator(os.path.abspath)] | None = Field(
        default=None, description="folder of a LoRA adapter (PEFT), merged into the model"
    )
    deterministic: bool = Field(default=False, description="batch-invariant answers, on a GPU too; slower there")
    allow_slow: bool = Field(
        default=False, description="use a GPU without a kernel for attention, many times slower; default: refuse it"
    )
    num_threads: int | None = Field(default=None, ge=1, description="CPU threads of each engine; default: torch's")
