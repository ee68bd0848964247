"""Whether a model's forward pass computes each row by itself, in an order that the number of rows does not change.

cuBLAS chooses a kernel by the number of rows, and torch's sums divide a row among threads by it. Matmuls and norms on
our own kernels do neither; elementwise functions and copies have no order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from worker.engine.model.attention import ShapeProbe, step_at_hand
from worker.engine.model.recurrent.mixer import RecurrentMixer

#: Operations that only move numbers, or make them; a layer norm gives a block of threads to each row.
ROW_WISE = frozenset(
    """
    _to_copy arange cat clone copy_ embedding empty empty_like empty_strided fill_ full full_like gather index
    index_copy_ index_put_ index_select native_layer_norm new_empty new_empty_strided new_full new_ones new_zeros ones
    ones_like repeat scalar_tensor scatter_ stack zero_ zeros zeros_like
    """.split()
)


class _OtherOperations(TorchDispatchMode):
    """Notes the operations that are not row-wise."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,  # noqa: ARG002
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        is_row_wise = torch.Tag.pointwise in func.tags or func.is_view or name in ROW_WISE
        if not is_row_wise and not (name in ("mm", "bmm") and args[0].shape[-1] == 1):  # an outer product
            self.names.add(name)
        return func(*args, **kwargs or {})


def recurrent_layers(model: Any) -> set[str]:
    """The name of a model's recurrent layers, where it has some: no order of their sums on a GPU is promised."""
    return {"recurrent states"} if any(isinstance(module, RecurrentMixer) for module in model.modules()) else set()


@torch.inference_mode()
def other_operations(model: Any, device: torch.device) -> set[str]:
    """The operations of a model's forward pass, beside attention and our kernels, that are not row-wise."""
    ids, positions = (torch.zeros((1, 2), dtype=torch.long, device=device) for _ in range(2))
    others = _OtherOperations()
    with step_at_hand(ShapeProbe()), others:
        model(input_ids=ids, position_ids=positions, use_cache=False)
    return others.names
