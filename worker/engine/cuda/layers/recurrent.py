"""The Triton kernels of recurrent layers, checked on the device before a step enters them."""

from __future__ import annotations

import logging
from typing import Any

import torch

from worker.engine.model.layer_modules import TOLERANCES
from worker.engine.model.recurrent.delta_net import PackedDeltaNet, Run, batch_of
from worker.engine.model.recurrent.delta_rule import DeltaNet, DeltaRule, delta_rule_in_torch
from worker.engine.out_of_memory import first_line, is_out_of_memory

logger = logging.getLogger(__name__)

#: A decoding row and a prompt of a few tokens.
RUNS = (Run(0), Run(1, 5, begins=True))


def enter_delta_rules(model: Any, device: torch.device) -> None:
    """Lets a model's Gated DeltaNets compute on the kernel, if it does what torch's operations do; else a warning."""
    delta_nets = [module for module in model.modules() if isinstance(module, PackedDeltaNet)]
    if not delta_nets:
        return
    try:
        from worker.engine.cuda.kernels.delta_rule import delta_rule

        difference = largest_difference(delta_rule, delta_nets[0].net, device, model.dtype)
    # A compiler fails in ways of its own, and no list of them is complete.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        problem = f"it cannot be compiled, {type(error).__name__}: {first_line(error)[:200]}"
    else:
        if difference <= TOLERANCES[model.dtype]:  # NaN is no small difference
            for module in delta_nets:
                module.rule = delta_rule
            return
        problem = f"its results differ from torch's by {difference:.3g}"
    logger.warning("recurrent layers go through torch's operations, which are slower, without our kernel: %s", problem)


@torch.inference_mode()
def largest_difference(rule: DeltaRule, net: DeltaNet, device: torch.device, dtype: torch.dtype) -> float:
    """Of outputs and states from torch's, relative to the largest of each; NaN if one is NaN."""
    generator = torch.Generator().manual_seed(0)

    def randn(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator).to(device)

    states = batch_of(RUNS, device).states
    assert states is not None
    projected = randn(len(states.sequences.rows), net.row_size).to(dtype)
    pools = (
        randn(len(RUNS), net.num_kept, net.channels).to(dtype),
        randn(len(RUNS), net.num_value_heads, net.key_dim, net.value_dim),
    )
    results = []
    for each in (rule, delta_rule_in_torch):
        own = (pools[0].clone(), pools[1].clone())
        results.append((each(net, projected, states, own), *own))
    differences = [
        ((found.float() - expected.float()).abs() / expected.float().abs().amax()).amax()
        for found, expected in zip(*results, strict=True)
    ]
    return float(torch.stack(differences).max())
