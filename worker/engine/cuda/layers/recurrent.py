"""The Triton kernels of recurrent layers, checked on the device before a step enters them."""

from __future__ import annotations

import logging
from typing import Any

import torch

from worker.engine.cuda.paged_attention import NoKernel, compiled
from worker.engine.model.layer_modules import TOLERANCES
from worker.engine.model.recurrent.delta_net import PackedDeltaNet, Run, batch_of, enter_rule
from worker.engine.model.recurrent.delta_rule import DeltaNet, DeltaRule, delta_rule_in_torch

logger = logging.getLogger(__name__)

#: A decoding row and a prompt of a few tokens.
RUNS = (Run(0), Run(1, 5, begins=True))


def enter_delta_rules(model: Any, device: torch.device) -> None:
    """Lets a model's Gated DeltaNets compute on the kernel, if it does what torch's operations do; else a warning."""
    delta_nets = [module for module in model.modules() if isinstance(module, PackedDeltaNet)]
    if not delta_nets:
        return
    try:
        rule = _checked_rule(delta_nets[0].net, device, model.dtype)
    except NoKernel as problem:
        message = "recurrent layers go through torch's operations, which are slower, without our kernel: %s"
        logger.warning(message, problem)
        return
    enter_rule(model, rule)


def _checked_rule(net: DeltaNet, device: torch.device, dtype: torch.dtype) -> DeltaRule:
    """The kernel. Raises `NoKernel`."""
    with compiled():
        from worker.engine.cuda.kernels.delta_rule import delta_rule

        difference = largest_difference(delta_rule, net, device, dtype)
    if not difference <= TOLERANCES[dtype]:  # NaN is no small difference
        raise NoKernel(f"its results differ from torch's by {difference:.3g}")
    return delta_rule


@torch.inference_mode()
def largest_difference(rule: DeltaRule, net: DeltaNet, device: torch.device, dtype: torch.dtype) -> float:
    """The largest difference of outputs and states from torch's, relative to the largest of each; NaN if one is NaN."""
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
