"""The part of a Gated DeltaNet between its two projections (Yang et al. 2024), in torch: for any device.

A device's kernel takes its place where there is one. The state says a value for a key: each token lets it decay, moves
what it says for the token's key towards the token's value, and reads it with the query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.batch_invariance import aligned
from worker.engine.model.step_batch import MIN_ROWS, StateChunk, StateRows

#: Tokens of a prompt that are computed at once.
CHUNK = 64

#: Added to the sum of squares of a query or key.
SQUARES_EPS = 1e-6


@dataclass(frozen=True)
class DeltaNet:
    """The sizes and fp32 constants of a layer.

    Rows of its first projection have queries, keys and values, which are convolved, a gate for each value, and for each
    value head a number of its learning rate and one of its decay.
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int  # of a head
    value_dim: int
    eps: float  # of the norm
    conv_weight: Tensor  # [kernel_size, channels], for the oldest input first
    conv_bias: Tensor | None  # [channels]
    decay_rates: Tensor  # [num_value_heads], negative
    dt_bias: Tensor  # [num_value_heads]
    norm_weight: Tensor  # [value_dim]

    @property
    def key_size(self) -> int:
        return self.num_key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        return self.num_value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Channels of queries, keys and values together."""
        return 2 * self.key_size + self.value_size

    @property
    def num_kept(self) -> int:
        """Inputs that the convolution keeps of the tokens before."""
        return len(self.conv_weight) - 1

    @property
    def row_size(self) -> int:
        return self.channels + self.value_size + 2 * self.num_value_heads


class DeltaRule(Protocol):
    def __call__(self, net: DeltaNet, projected: Tensor, states: StateRows, pools: tuple[Tensor, Tensor]) -> Tensor:
        """Projected rows [rows, row_size] to [rows, value_size]; zeros for rows of padding.

        Reads and writes the sequences' states in pools [states, num_kept, channels] of inputs, in the rows' dtype, and
        [states, num_value_heads, key_dim, value_dim] in fp32.
        """


@dataclass(frozen=True)
class _Tokens:
    """[tokens, value heads, …] each, in fp32."""

    query: Tensor
    key: Tensor
    value: Tensor
    beta: Tensor  # the learning rate
    log_decay: Tensor


def delta_rule_in_torch(net: DeltaNet, projected: Tensor, states: StateRows, pools: tuple[Tensor, Tensor]) -> Tensor:
    """A `DeltaRule`: all decoding rows together, prompts one by one."""
    output = projected.new_zeros(len(projected), net.value_size)
    if states.num_decoding:
        output[: states.num_decoding] = _decode(net, projected[: states.num_decoding], states.decoding, pools)
    for chunk in states.chunks:
        output.index_copy_(0, chunk.rows, _prefill(net, projected.index_select(0, chunk.rows), chunk, pools))
    return output


def _decode(net: DeltaNet, rows: Tensor, indices: Tensor, pools: tuple[Tensor, Tensor]) -> Tensor:
    """One token of each sequence."""
    count = len(rows)
    if count < MIN_ROWS:  # sums over a single one may take another order
        rows, indices = rows.expand(MIN_ROWS, -1), indices.expand(MIN_ROWS)
    inputs = torch.cat([pools[0].index_select(0, indices), rows[:, None, : net.channels]], dim=1)
    tokens = _tokens(net, _convolved(net, inputs)[:, 0], rows)
    state = pools[1].index_select(0, indices) * aligned(torch.exp, tokens.log_decay)[..., None, None]
    known = (state * tokens.key[..., None]).sum(-2)
    state += tokens.key[..., None] * ((tokens.value - known) * tokens.beta[..., None])[..., None, :]
    read = (state * tokens.query[..., None]).sum(-2)
    for pool, new in zip(pools, (inputs[:, 1:], state), strict=True):
        pool.index_copy_(0, indices[:count], new[:count])
    return _gated(net, read, rows)[:count]


def _prefill(net: DeltaNet, rows: Tensor, chunk: StateChunk, pools: tuple[Tensor, Tensor]) -> Tensor:
    """Some tokens of one sequence, `CHUNK` at a time."""
    kept, state = (pool.index_select(0, chunk.state) for pool in pools)
    if chunk.begins:
        kept, state = torch.zeros_like(kept), torch.zeros_like(state)
    inputs = torch.cat([kept, rows[None, :, : net.channels]], dim=1)
    tokens = _tokens(net, _convolved(net, inputs)[0], rows)
    reads, matrix = [], state[0]
    for start in range(0, len(rows), CHUNK):
        read, matrix = _read_chunk(tokens, start, matrix)
        reads.append(read)
    for pool, new in zip(pools, (inputs[:, len(rows) :], matrix[None]), strict=True):
        pool.index_copy_(0, chunk.state, new)
    return _gated(net, torch.cat(reads)[: len(rows)], rows)


def _convolved(net: DeltaNet, inputs: Tensor) -> Tensor:
    """[sequences, num_kept + tokens, channels] to the fp32 [sequences, tokens, channels], added from the oldest on."""
    inputs = inputs.float()
    num_tokens = inputs.shape[1] - net.num_kept
    output = inputs[:, :num_tokens] * net.conv_weight[0]
    for tap in range(1, len(net.conv_weight)):
        output = output + inputs[:, tap : tap + num_tokens] * net.conv_weight[tap]
    if net.conv_bias is not None:
        output = output + net.conv_bias
    return aligned(F.silu, output)


def _tokens(net: DeltaNet, mixed: Tensor, rows: Tensor) -> _Tokens:
    query, key, value = mixed.split([net.key_size, net.key_size, net.value_size], dim=-1)
    sharing = net.num_value_heads // net.num_key_heads
    query, key = (
        _normalized(heads.unflatten(-1, (-1, net.key_dim))).repeat_interleave(sharing, dim=1) for heads in (query, key)
    )
    beta, step = rows[:, net.channels + net.value_size :].float().chunk(2, dim=-1)
    return _Tokens(
        query * net.key_dim**-0.5,
        key,
        value.unflatten(-1, (-1, net.value_dim)),
        aligned(torch.sigmoid, beta),
        net.decay_rates * aligned(F.softplus, step + net.dt_bias),
    )


def _normalized(heads: Tensor) -> Tensor:
    return heads * torch.rsqrt(heads.square().sum(-1, keepdim=True) + SQUARES_EPS)


def _gated(net: DeltaNet, read: Tensor, rows: Tensor) -> Tensor:
    """The norm of [tokens, value heads, value_dim], times swish of the gates; [tokens, value_size]."""
    gate = rows[:, net.channels : net.channels + net.value_size].float()
    normed = read * torch.rsqrt(read.square().mean(-1, keepdim=True) + net.eps) * net.norm_weight
    return (normed.flatten(1) * aligned(F.silu, gate)).to(rows.dtype)


def _read_chunk(tokens: _Tokens, start: int, state: Tensor) -> tuple[Tensor, Tensor]:
    """The delta rule on `CHUNK` tokens by matmuls of one size; [tokens, value heads, value_dim], and the new state.

    The updates of a chunk are one linear system: each token's is its value less what the tokens before it said.
    """
    query, key, value, beta, log_decay = (_chunk_of(each, start) for each in vars(tokens).values())
    decay = log_decay.cumsum(-1)  # since the chunk's beginning, and including the token's own
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=state.device).triu(1)
    between = (decay[..., None] - decay[..., None, :]).masked_fill(later, float("-inf")).exp()
    since, until = decay.exp()[..., None], (decay[..., -1:] - decay).exp()[..., None]
    system = (key * beta[..., None]) @ key.transpose(-1, -2) * between
    known = beta[..., None] * (value - since * (key @ state))
    updates = torch.linalg.solve_triangular(system, known, upper=False, unitriangular=True)
    read = (query * since) @ state + (query @ key.transpose(-1, -2) * between) @ updates
    state = state * decay[..., -1:].exp()[..., None] + (key * until).transpose(-1, -2) @ updates
    return read.transpose(0, 1), state


def _chunk_of(values: Tensor, start: int) -> Tensor:
    """[tokens, heads, …] to the [heads, CHUNK, …] from a token on; beyond the last one zeros, which change nothing."""
    part = values[start : start + CHUNK].transpose(0, 1)
    return F.pad(part, (*(0, 0) * (part.dim() - 2), 0, CHUNK - part.shape[1])).contiguous()
