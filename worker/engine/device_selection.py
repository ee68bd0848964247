"""The choice of a device, of the backend that computes there, and of the numbers' type."""

from __future__ import annotations

import logging

import torch

from worker.engine.backend import Backend, DeviceModel
from worker.engine.cpu.backend import CpuBackend
from worker.engine.cuda.backend import CudaBackend
from worker.engine.fallback.backend import FallbackBackend
from worker.engine.request import ModelUnavailable

logger = logging.getLogger(__name__)


def backend_for(device: torch.device) -> type[Backend]:
    """The backend of a device; one without its own computes with torch's operations alone."""
    backends: dict[str, type[Backend]] = {"cpu": CpuBackend, "cuda": CudaBackend}
    return backends.get(device.type, Backend)


def backend_of(model: DeviceModel) -> type[Backend]:
    """The backend that runs the steps of a loaded model."""
    return backend_for(model.device) if model.own_cache is None else FallbackBackend


def choose_device(device: str) -> torch.device:
    """`auto` takes a CUDA device where there is one, and says so where not. A CUDA device always has its index."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            # A torch built for CUDA was installed for a GPU, which its driver or a container hides.
            level = logging.INFO if torch.version.cuda is None else logging.WARNING
            logger.log(level, "decoding on the CPU: torch %s sees no CUDA device", torch.__version__)
    chosen = torch.device(device)
    if chosen.type != "cuda":
        return chosen
    if not torch.cuda.is_available():
        raise ModelUnavailable(f"device {device} was asked for, but this machine has no CUDA device; use --device cpu")
    index = torch.cuda.current_device() if chosen.index is None else chosen.index
    if index >= torch.cuda.device_count():
        raise ModelUnavailable(f"device {device} was asked for, but this machine has {torch.cuda.device_count()}")
    return torch.device("cuda", index)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` takes bfloat16 where the device computes in it, else float16 on a GPU and float32 on a CPU."""
    if dtype != "auto":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[dtype]
    if device.type == "cuda":
        # Emulated bf16, of cards older than sm_80, has neither speed nor kernels; fp16 has both.
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    has_bf16 = torch.backends.mkldnn.is_available() and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
    return torch.bfloat16 if has_bf16 else torch.float32
