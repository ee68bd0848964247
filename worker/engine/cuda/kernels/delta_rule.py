"""The gated delta rule of a recurrent layer, in place on each sequence's state, token by token.

A program has a part of one sequence's state, and no other touches it: neither the batch nor the pieces of a prompt
change a number.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.model.recurrent.delta_rule import SQUARES_EPS, DeltaNet
from worker.engine.model.step_batch import StateRows

#: Channels of a convolution's program, and columns of a state's.
CHANNELS, COLUMNS = 256, 32


@triton.jit
def convolve(
    mixed, inputs, projected, weight, bias, rows, cu_seqlens, states, begins, row_stride, channels, TAPS: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (sequences, blocks of channels): swish of the convolution, its inputs added from the oldest on."""
    sequence = tl.program_id(0)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_place = places < channels
    first = tl.load(cu_seqlens + sequence)
    count = tl.load(cu_seqlens + sequence + 1) - first
    kept = inputs + tl.load(states + sequence) * (TAPS - 1) * channels + places
    is_kept = is_place & (tl.load(begins + sequence) == 0)
    for token in range(count):
        total = tl.zeros([BLOCK], tl.float32)
        for tap in tl.static_range(TAPS):
            place = token + tap  # among the inputs that are kept and the tokens after them
            is_new = place >= TAPS - 1
            row = tl.load(rows + first + place - (TAPS - 1), mask=is_new, other=0)
            old = tl.load(kept + place * channels, mask=is_kept & (place < TAPS - 1), other=0.0).to(tl.float32)
            new = tl.load(projected + row * row_stride + places, mask=is_place & is_new, other=0.0).to(tl.float32)
            factor = tl.load(weight + tap * channels + places, mask=is_place, other=0.0)
            total += factor * (old + new)  # one of them is zero
        if HAS_BIAS:
            total += tl.load(bias + places, mask=is_place, other=0.0)
        swish = tl.div_rn(total, 1.0 + tl.exp(-total))
        tl.store(mixed + (first + token) * channels + places, swish, mask=is_place)
    for index in tl.static_range(TAPS - 1):
        place = count + index
        is_new = place >= TAPS - 1
        row = tl.load(rows + first + place - (TAPS - 1), mask=is_new, other=0)
        old = tl.load(kept + place * channels, mask=is_kept & (place < TAPS - 1), other=0.0)
        new = tl.load(projected + row * row_stride + places, mask=is_place & is_new, other=0.0)
        tl.store(kept + index * channels, tl.where(is_new, new, old), mask=is_place)


@triton.jit
def update_states(
    core, matrices, mixed, projected, decay_rates, dt_bias, rows, cu_seqlens, states, begins, row_stride, channels,
    scale, squares_eps, NUM_HEADS: tl.constexpr, SHARING: tl.constexpr, KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, KEYS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (sequences, value heads, blocks of columns): the state decays, learns each token's value, and is read."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    keys = tl.arange(0, KEYS)
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    is_key, is_column = keys < KEY_DIM, columns < VALUE_DIM
    is_place = is_key[:, None] & is_column[None, :]
    first = tl.load(cu_seqlens + sequence)
    last = tl.load(cu_seqlens + sequence + 1)
    index = tl.load(states + sequence) * NUM_HEADS + head
    places = matrices + (index * KEY_DIM + keys[:, None]) * VALUE_DIM + columns[None, :]
    matrix = tl.load(places, mask=is_place & (tl.load(begins + sequence) == 0), other=0.0)
    rate, bias = tl.load(decay_rates + head), tl.load(dt_bias + head)
    for token in range(first, last):
        row = projected + tl.load(rows + token) * row_stride + channels + NUM_HEADS * VALUE_DIM + head
        beta = tl.div_rn(1.0, 1.0 + tl.exp(-tl.load(row).to(tl.float32)))
        step = tl.load(row + NUM_HEADS).to(tl.float32) + bias
        softplus = tl.where(step > 20.0, step, tl.log(1.0 + tl.exp(tl.minimum(step, 20.0))))
        decay = tl.exp(rate * softplus)
        heads = mixed + token * channels
        query = tl.load(heads + head // SHARING * KEY_DIM + keys, mask=is_key, other=0.0)
        key = tl.load(heads + (NUM_HEADS // SHARING + head // SHARING) * KEY_DIM + keys, mask=is_key, other=0.0)
        values = heads + 2 * (NUM_HEADS // SHARING) * KEY_DIM + head * VALUE_DIM
        value = tl.load(values + columns, mask=is_column, other=0.0)
        query *= tl.div_rn(scale, tl.sqrt_rn(tl.sum(query * query, 0) + squares_eps))
        key *= tl.div_rn(1.0, tl.sqrt_rn(tl.sum(key * key, 0) + squares_eps))
        known = tl.sum(matrix * key[:, None], 0)
        change = (value - known * decay) * beta
        matrix = matrix * decay + key[:, None] * change[None, :]
        read = tl.sum(matrix * query[:, None], 0)
        tl.store(core + (token * NUM_HEADS + head) * VALUE_DIM + columns, read, mask=is_column)
    tl.store(places, matrix, mask=is_place)


@triton.jit
def norm_and_gate(
    output, core, projected, norm_weight, rows, row_stride, channels, eps, NUM_HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (tokens, value heads): an RMS norm times swish of the gate."""
    token, head = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    is_column = columns < VALUE_DIM
    row = tl.load(rows + token)
    place = head * VALUE_DIM + columns
    x = tl.load(core + token * NUM_HEADS * VALUE_DIM + place, mask=is_column, other=0.0)
    gate = tl.load(projected + row * row_stride + channels + place, mask=is_column, other=0.0).to(tl.float32)
    weight = tl.load(norm_weight + columns, mask=is_column, other=0.0)
    scale = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(x * x, 0) / VALUE_DIM + eps))
    gated = x * scale * weight * tl.div_rn(gate, 1.0 + tl.exp(-gate))
    tl.store(output + row * NUM_HEADS * VALUE_DIM + place, gated.to(output.dtype.element_ty), mask=is_column)


def delta_rule(net: DeltaNet, projected: Tensor, states: StateRows, pools: tuple[Tensor, Tensor]) -> Tensor:
    """A `DeltaRule`."""
    output, runs = projected.new_zeros(len(projected), net.value_size), states.sequences
    num_tokens, num_sequences, num_heads = len(runs.rows), len(runs.states), net.num_value_heads
    mixed = projected.new_empty(num_tokens, net.channels, dtype=torch.float32)
    core = projected.new_empty(num_tokens, net.value_size, dtype=torch.float32)
    sequences, strides = (runs.rows, runs.cu_seqlens, runs.states, runs.begins), (projected.stride(0), net.channels)
    convolve[(num_sequences, triton.cdiv(net.channels, CHANNELS))](
        mixed, pools[0], projected, net.conv_weight, net.conv_bias, *sequences, *strides, TAPS=net.num_kept + 1,
        HAS_BIAS=net.conv_bias is not None, BLOCK=CHANNELS, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    update_states[(num_sequences, num_heads, triton.cdiv(net.value_dim, COLUMNS))](
        core, pools[1], mixed, projected, net.decay_rates, net.dt_bias, *sequences, *strides, net.key_dim**-0.5,
        SQUARES_EPS, NUM_HEADS=num_heads, SHARING=num_heads // net.num_key_heads, KEY_DIM=net.key_dim,
        VALUE_DIM=net.value_dim, KEYS=triton.next_power_of_2(net.key_dim), COLUMNS=COLUMNS, num_warps=4,
        enable_fp_fusion=False,
    )  # fmt: skip
    norm_and_gate[(num_tokens, num_heads)](
        output, core, projected, net.norm_weight, runs.rows, *strides, net.eps, NUM_HEADS=num_heads,
        VALUE_DIM=net.value_dim, BLOCK=triton.next_power_of_2(net.value_dim), num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return output
