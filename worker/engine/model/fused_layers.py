"""A layer in few operations: attention or a Gated DeltaNet, then SwiGLU; the last matmul of each adds the residual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from worker.engine.batch_invariance import aligned
from worker.engine.model.attention import AttentionLayer, AttentionStep, attend_to_cache
from worker.engine.model.experts import as_linear
from worker.engine.model.linear import Linear, MakeLinear
from worker.engine.model.recurrent.delta_net import PackedDeltaNet
from worker.engine.model.recurrent.delta_rule import DeltaNet, DeltaRule
from worker.engine.model.recurrent.state_pool import StateKey
from worker.engine.model.replace_modules import drop_weights
from worker.engine.model.row_operations import HeadNorms, RMSNorm, Rotation, RowOperations

#: Transformers' layers that `FusedLayer` computes. Gemma's and others' have their norms in other places.
FUSABLE_LAYERS = (
    "LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "Qwen3_5DecoderLayer",
)  # fmt: skip

#: Norms whose weights are differences from one.
CENTERED_NORMS = ("Qwen3_5RMSNorm",)


class Mixer(Protocol):
    """The part of a layer that mixes a sequence's rows."""

    def __call__(self, normed: Tensor, residual: Tensor, rotation: Rotation, step: AttentionStep) -> Tensor:
        """Normed rows [rows, hidden], mixed, plus the residual; may overwrite the residual."""


@dataclass(frozen=True)
class FusedAttention:
    operations: RowOperations
    layer: AttentionLayer
    qkv: Linear
    head_dim: int
    head_norms: HeadNorms | None
    gate: Linear | None  # of what the heads attended to
    output: Linear

    def __call__(self, normed: Tensor, residual: Tensor, rotation: Rotation, step: AttentionStep) -> Tensor:
        num_rows = len(normed)
        heads = self.qkv(normed).view(num_rows, -1, self.head_dim)
        pools = step.cache.pools(self.layer.index)
        query = self.operations.rotate_and_write(heads, self.head_norms, rotation, step.batch.slot_mapping, pools)
        attended = attend_to_cache(self.layer, query, step).view(num_rows, -1)
        if self.gate is not None:
            attended = attended * aligned(torch.sigmoid, self.gate(normed))
        return self.output.add_residual(attended, residual)


@dataclass(frozen=True)
class FusedDeltaNet:
    net: DeltaNet
    keys: tuple[StateKey, StateKey]
    rule: DeltaRule
    in_proj: Linear
    out_proj: Linear

    def __call__(self, normed: Tensor, residual: Tensor, rotation: Rotation, step: AttentionStep) -> Tensor:  # noqa: ARG002 its states know the order
        projected = self.in_proj(normed)
        states, pools = step.batch.states, step.states
        if states is None or pools is None:  # a step that only measures its memory
            mixed = projected[:, : self.net.value_size]
        else:
            inputs, state = (pools.pool(key) for key in self.keys)
            mixed = self.rule(self.net, projected, states, (inputs, state))
        return self.out_proj.add_residual(mixed, residual)


@dataclass(frozen=True)
class FusedLayer:
    operations: RowOperations
    input_norm: RMSNorm
    mixer: Mixer
    mlp_norm: RMSNorm
    gate_up: Linear
    down: Linear

    def __call__(self, hidden: Tensor, rotation: Rotation, step: AttentionStep) -> Tensor:
        """[rows, hidden] to [rows, hidden]; may overwrite its input."""
        hidden = self.mixer(self.operations.norm(hidden, self.input_norm), hidden, rotation, step)
        activated = self.gate_up.swiglu(self.operations.norm(hidden, self.mlp_norm))
        return self.down.add_residual(activated, hidden)


def is_fusable(layer: nn.Module) -> bool:
    """Whether `FusedLayer` computes a layer of Transformers, whose Gated DeltaNet is packed."""
    mixer = getattr(layer, "linear_attn", None)
    return type(layer).__name__ in FUSABLE_LAYERS and (mixer is None or isinstance(mixer, PackedDeltaNet))


def take_layer(layer: Any, num_rotated: int, make_linear: MakeLinear, operations: RowOperations) -> FusedLayer:
    """A layer of Transformers' model, which loses its weights: those of all layers twice would not fit a GPU.

    Its model rotates the first `num_rotated` dimensions of a head.
    """
    mixer: Mixer
    if hasattr(layer, "linear_attn"):
        mixer = _take_delta_net(layer.linear_attn, make_linear)
    else:
        mixer = _take_attention(layer.self_attn, num_rotated, make_linear, operations)
    mlp = layer.mlp
    fused = FusedLayer(
        operations=operations,
        input_norm=norm_of(layer.input_layernorm),
        mixer=mixer,
        mlp_norm=norm_of(layer.post_attention_layernorm),
        gate_up=make_linear([mlp.gate_proj, mlp.up_proj], is_gate_up=True),
        down=make_linear([mlp.down_proj]),
    )
    drop_weights(layer)
    return fused


def norm_of(norm: Any) -> RMSNorm:
    if type(norm).__name__ in CENTERED_NORMS:
        return RMSNorm(1 + norm.weight.detach().float(), norm.eps)
    return RMSNorm(norm.weight.detach(), norm.variance_epsilon)


def halves_first(dim: int, num_rotated: int) -> Tensor:
    """The order of a head's dimensions in which the rotated ones are the first of both its halves.

    Then the head is rotated as a whole, by angles of 0 beyond the rotated ones. Scores are sums over all dimensions of
    queries and keys, so that both may have any order, if it is the same.
    """
    order = torch.arange(dim)
    rotated, others = order[:num_rotated].view(2, -1), order[num_rotated:].view(2, -1)
    return torch.cat([rotated, others], dim=1).flatten()


def _take_delta_net(mixer: PackedDeltaNet, make_linear: MakeLinear) -> FusedDeltaNet:
    in_proj, out_proj = mixer.in_proj, mixer.out_proj
    assert isinstance(in_proj, nn.Linear) and isinstance(out_proj, nn.Linear), "replaced before"
    return FusedDeltaNet(mixer.net, mixer.keys, mixer.rule, make_linear([in_proj]), make_linear([out_proj]))


def _take_attention(
    attention: Any, num_rotated: int, make_linear: MakeLinear, operations: RowOperations
) -> FusedAttention:
    dim = attention.head_dim
    query, key, gate = attention.q_proj, attention.k_proj, None
    norms = [norm_of(getattr(attention, name)) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    if query.out_features == 2 * attention.o_proj.in_features:
        query, gate = _picked(query, (2, dim), 0), _picked(query, (2, dim), 1)
    if num_rotated < dim:
        order = halves_first(dim, num_rotated).to(key.weight.device)
        query, key = _picked(query, (dim,), order), _picked(key, (dim,), order)
        norms = [RMSNorm(norm.weight[order], norm.eps) for norm in norms]
    return FusedAttention(
        operations=operations,
        layer=AttentionLayer(attention.layer_idx, attention.scaling, _window(attention)),
        qkv=make_linear([query, key, attention.v_proj]),
        head_dim=dim,
        head_norms=HeadNorms(*norms) if norms else None,
        gate=None if gate is None else make_linear([gate]),
        output=make_linear([attention.o_proj]),
    )


def _picked(linear: nn.Linear, sizes: Sequence[int], which: int | Tensor) -> nn.Linear:
    """Features of each head, by an index of the first of `sizes`, which are those of a head."""
    weight, bias = (
        None if each is None else each.detach().unflatten(0, (-1, *sizes))[:, which].flatten(0, 1)
        for each in (linear.weight, linear.bias)
    )
    assert weight is not None
    return as_linear(weight, bias)


def _window(attention: Any) -> int | None:
    """The tokens that a row sees; some layers say so themselves, Mistral's in the configuration."""
    if hasattr(attention, "sliding_window"):
        window: int | None = attention.sliding_window
        return window
    return getattr(attention.config, "sliding_window", None)
