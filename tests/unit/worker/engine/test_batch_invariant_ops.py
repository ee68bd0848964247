"""The operations under every model give a row the same bits in a batch of any size."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from worker.engine.batch_invariance import AlignedActivation, align_activations, initialize_vector_math
from worker.engine.cpu.onednn_linear import OneDnnLinear, can_pack

pytestmark = pytest.mark.usefixtures("two_threads")

DTYPES = [torch.float32, torch.bfloat16]
#: Batch sizes around the places where the kernels change their ways.
SIZES = [2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 100, 340, 341, 342, 683]


@pytest.fixture(scope="module", autouse=True)
def vector_math_is_initialized() -> None:
    """As `prepare_model` does."""
    initialize_vector_math()


def rows_of(width: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(700, width, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [96, 97, 199, 1000])
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "quick_gelu"])
def test_activations(name: str, width: int, dtype: torch.dtype) -> None:
    activation = AlignedActivation(ACT2FN[name])
    rows = rows_of(width, dtype)
    together = activation(rows)
    for size in SIZES:
        assert torch.equal(activation(rows[:size]), together[:size]), size
        assert torch.equal(activation(rows[-size:]), together[-size:]), size


@pytest.mark.parametrize("width", [24, 40, 96])
def test_activations_of_half_a_row(width: int) -> None:
    """A gate is often the left half of a matmul's output, whose rows are then not adjacent."""
    activation = AlignedActivation(nn.SiLU())
    gates = rows_of(2 * width, torch.float32)[:640].chunk(2, dim=-1)[0]
    together = activation(gates)
    for size in (*SIZES, 64, 128, 640):
        assert torch.equal(activation(gates[:size]), together[:size]), size


def test_an_activation_of_no_rows_is_empty() -> None:
    """An expert that no token chose."""
    assert AlignedActivation(nn.SiLU())(torch.empty(0, 24)).shape == (0, 24)


def test_without_alignment_the_batch_would_show() -> None:
    """Why `AlignedActivation` exists; when this fails, torch has changed and it may go."""
    rows = rows_of(199, torch.float32)
    together = torch.nn.functional.silu(rows)
    assert any(not torch.equal(torch.nn.functional.silu(rows[:size]), together[:size]) for size in SIZES)


SHAPES = [(64, 199), (96, 64), (896, 128), (4864, 896)]


def check_packed_weights(dtype: torch.dtype) -> None:
    for inputs, outputs in SHAPES:
        torch.manual_seed(2)
        linear = OneDnnLinear([nn.Linear(inputs, outputs).to(dtype)])
        rows = rows_of(inputs, dtype)
        together = linear(rows)
        for size in SIZES:
            assert torch.equal(linear(rows[:size]), together[:size]), (inputs, outputs, size)
            assert torch.equal(linear(rows[-size:]), together[-size:]), (inputs, outputs, size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_weights(dtype: torch.dtype) -> None:
    """In a process of its own: oneDNN is kept from AMX before its first matmul, or not at all."""
    if not can_pack(dtype):
        pytest.skip(f"this processor has no packed weights in {dtype}")
    script = (
        "import torch; from worker.engine.cpu.onednn_linear import keep_onednn_from_amx\n"
        "keep_onednn_from_amx(); torch.set_num_threads(2)\n"
        f"from {__name__} import check_packed_weights; check_packed_weights({dtype})"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr


def test_every_activation_of_a_model_is_replaced() -> None:
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), ACT2FN["silu"]), "b": ACT2FN["gelu"]})
    assert align_activations(model) == 2
    assert align_activations(model) == 0
