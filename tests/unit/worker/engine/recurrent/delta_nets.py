"""Random layers and steps of a Gated DeltaNet, and what they compute, token by token in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.model.recurrent.delta_net import Run
from worker.engine.model.recurrent.delta_rule import SQUARES_EPS, DeltaNet

#: Key heads, value heads, their sizes, the convolution's size: whole vectors and odd ones.
SIZES = ((2, 4, 16, 16, 4), (1, 3, 8, 21, 2), (2, 2, 128, 128, 4), (1, 2, 33, 80, 3))

#: A decoding row, prompts around the borders of chunks, and one that goes on.
RUNS = (Run(3), Run(0, 1, begins=True), Run(5, 65, begins=True), Run(1, 130, begins=True), Run(2, 7))
NUM_STATES = 7


def random_net(num_key_heads: int, num_value_heads: int, key_dim: int, value_dim: int, kernel_size: int) -> DeltaNet:
    generator = torch.Generator().manual_seed(key_dim)
    channels = 2 * num_key_heads * key_dim + num_value_heads * value_dim

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return DeltaNet(
        num_key_heads, num_value_heads, key_dim, value_dim, 1e-6,
        conv_weight=drawn(kernel_size, channels),
        conv_bias=drawn(channels) if kernel_size == 3 else None,
        decay_rates=-drawn(num_value_heads).exp(),
        dt_bias=drawn(num_value_heads),
        norm_weight=drawn(value_dim),
    )  # fmt: skip


def random_rows(net: DeltaNet, num_rows: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, net.row_size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_pools(net: DeltaNet, dtype: torch.dtype, fresh: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """States, of which those of sequences that begin are NaN: nothing of them may be read."""
    generator = torch.Generator().manual_seed(9)
    inputs = torch.randn(NUM_STATES, net.num_kept, net.channels, generator=generator).to(dtype)
    state = torch.randn(NUM_STATES, net.num_value_heads, net.key_dim, net.value_dim, generator=generator)
    for index in fresh:
        inputs[index], state[index] = float("nan"), float("nan")
    return inputs, state


@dataclass(frozen=True)
class Expected:
    output: Tensor  # [tokens, value_size]
    inputs: Tensor
    state: Tensor


def run_in_float64(net: DeltaNet, rows: Tensor, inputs: Tensor, state: Tensor) -> Expected:
    """One sequence, by the definition."""
    conv, rates, dt, norm, matrix = (
        each.double() for each in (net.conv_weight, net.decay_rates, net.dt_bias, net.norm_weight, state)
    )
    history = torch.cat([inputs, rows[:, : net.channels]])
    outputs = []
    for index, row in enumerate(rows.double()):
        mixed = (history[index : index + len(conv)].double() * conv).sum(0)
        mixed = torch.nn.functional.silu(mixed if net.conv_bias is None else mixed + net.conv_bias.double())
        gate, beta, step = row[net.channels :].split([net.value_size, net.num_value_heads, net.num_value_heads])
        decay = (rates * torch.nn.functional.softplus(step + dt)).exp()
        query, key, value = mixed.split([net.key_size, net.key_size, net.value_size])
        heads = []
        for head in range(net.num_value_heads):
            shared = head * net.num_key_heads // net.num_value_heads
            q, k = (part.view(-1, net.key_dim)[shared] for part in (query, key))
            q, k = (part / (part.square().sum() + SQUARES_EPS).sqrt() for part in (q, k))
            v = value.view(-1, net.value_dim)[head]
            now = matrix[head] * decay[head]
            matrix[head] = now + torch.outer(k, (v - k @ now) * beta[head].sigmoid())
            read = q @ matrix[head] / net.key_dim**0.5
            normed = read / (read.square().mean() + net.eps).sqrt() * norm
            heads.append(normed * torch.nn.functional.silu(gate.view(-1, net.value_dim)[head]))
        outputs.append(torch.cat(heads))
    return Expected(torch.stack(outputs), history[len(rows) :], matrix)
