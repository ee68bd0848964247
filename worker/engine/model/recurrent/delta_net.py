"""A Gated DeltaNet on the packed rows of a step: one matmul before and one after the delta rule.

Takes the place of a layer that computes the same: a copy of it with other weights and this module are compared. Qwen3.5
and Qwen3-Next have such layers; their projections stand in different orders.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.model.attention import AttentionStep
from worker.engine.model.batch_invariant_mode import without_mode
from worker.engine.model.experts import as_linear
from worker.engine.model.kv_cache import KVCache
from worker.engine.model.linear import merged_weights
from worker.engine.model.recurrent.delta_rule import CHUNK, DeltaNet, DeltaRule, delta_rule_in_torch
from worker.engine.model.recurrent.grouped_mixer import GroupedMixer
from worker.engine.model.recurrent.mixer import RecurrentMixer
from worker.engine.model.recurrent.state_pool import StateKey, StateLayout, StatePool, StateShape
from worker.engine.model.replace_modules import drop_weights
from worker.engine.model.step_batch import SequenceRows, StateChunk, StateRows, StepBatch

logger = logging.getLogger(__name__)

#: The largest difference of a layer that computes the same, relative to its largest output.
TOLERANCE = 1e-3

#: The projections of queries, keys and values, gates, learning rates and decays.
SEPARATE = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
GROUPED_BY_HEAD = ("in_proj_qkvz", "in_proj_ba")


class PackedDeltaNet(RecurrentMixer):
    """Stands in for a Gated DeltaNet of Transformers, whose weights it takes over."""

    def __init__(self, mixer: Any, keys: tuple[StateKey, StateKey]) -> None:
        """Raises what comes of a layer that lacks a part or has it in another shape. `keys`: inputs, then state."""
        super().__init__()
        self.net = _net_of(mixer)
        self.keys = keys
        self.rule: DeltaRule = delta_rule_in_torch
        self.in_proj: nn.Module = _in_projection(mixer, self.net)
        self.out_proj: nn.Module = as_linear(*merged_weights([mixer.out_proj]))
        self._hidden_name = next(iter(signature(mixer.forward).parameters))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The rows of a step [1, rows, hidden] to as many."""
        assert self.step is not None, "the model was called outside of a step"
        hidden: Tensor = args[0] if args else kwargs[self._hidden_name]
        states, pool = self.step.batch.on(hidden.device).states, self.step.states
        if states is None or pool is None:  # a step that only measures its memory
            return torch.zeros_like(hidden)
        inputs, state = (pool.pool(key) for key in self.keys)
        projected = self.in_proj(hidden[0])
        with without_mode():
            mixed = self.rule(self.net, projected, states, (inputs, state))
        output: Tensor = self.out_proj(mixed)
        return output[None]

    def own_shapes(self, shapes: Mapping[StateKey, StateShape]) -> dict[StateKey, StateShape]:
        """The states as this module keeps them: inputs token by token, and the newest one comes with its row."""
        inputs, state = (shapes[key] for key in self.keys)
        net = self.net
        return {
            self.keys[0]: replace(inputs, shape=(net.num_kept, net.channels)),
            self.keys[1]: replace(state, shape=(net.num_value_heads, net.key_dim, net.value_dim), dtype=torch.float32),
        }


def enter_rule(model: nn.Module, rule: DeltaRule) -> None:
    """Lets a model's packed layers compute by a device's rule."""
    for module in model.modules():
        if isinstance(module, PackedDeltaNet):
            module.rule = rule


class DeltaNetPacker:
    """Makes the modules that take the places of a model's layers. Layers of one class and shape are compared once."""

    def __init__(self) -> None:
        self._verdicts: dict[tuple[Any, ...], bool] = {}

    def packed(self, mixer: nn.Module, cache_name: str, keys: tuple[StateKey, ...]) -> PackedDeltaNet | None:
        """The module with a layer's weights, which the layer loses; None for a layer of another kind."""
        if [key.kind for key in keys] != ["conv", "recurrent"]:
            return None
        kind = (type(mixer), *((name, each.shape) for name, each in mixer.named_parameters()))
        both = (keys[0], keys[1])
        if kind not in self._verdicts:
            self._verdicts[kind] = _is_same(mixer, cache_name, both)
        if not self._verdicts[kind]:
            return None
        made = PackedDeltaNet(mixer, both)
        drop_weights(mixer)
        return made


def _is_same(mixer: nn.Module, cache_name: str, keys: tuple[StateKey, StateKey]) -> bool:
    try:
        return _computes_the_same(mixer, cache_name, keys)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        logger.debug("%s is not packed: %s", type(mixer).__name__, error)
        return False


def _net_of(mixer: Any) -> DeltaNet:
    conv: nn.Conv1d = mixer.conv1d
    net = DeltaNet(
        num_key_heads=mixer.num_k_heads,
        num_value_heads=mixer.num_v_heads,
        key_dim=mixer.head_k_dim,
        value_dim=mixer.head_v_dim,
        eps=float(mixer.norm.variance_epsilon),
        conv_weight=conv.weight.detach()[:, 0].float().t().contiguous(),
        conv_bias=None if conv.bias is None else conv.bias.detach().float(),
        decay_rates=-mixer.A_log.detach().float().exp(),
        dt_bias=mixer.dt_bias.detach().float().contiguous(),
        norm_weight=mixer.norm.weight.detach().float().contiguous(),
    )
    shapes = [tuple(each.shape) for each in (net.conv_weight[0], net.decay_rates, net.dt_bias, net.norm_weight)]
    heads = (net.num_value_heads,)
    if shapes != [(net.channels,), heads, heads, (net.value_dim,)] or net.num_value_heads % net.num_key_heads:
        raise ValueError(f"its parts have the shapes {shapes}")
    return net


def _in_projection(mixer: Any, net: DeltaNet) -> nn.Module:
    """All projections of a row as one, in the order of `DeltaNet`."""
    names = SEPARATE if hasattr(mixer, SEPARATE[0]) else GROUPED_BY_HEAD
    weight, bias = merged_weights([getattr(mixer, name) for name in names])
    if len(weight) != net.row_size:
        raise ValueError(f"its projections have {len(weight)} features, not {net.row_size}")
    if names is GROUPED_BY_HEAD:
        order = _order_by_kind(mixer).to(weight.device)
        weight, bias = weight[order], None if bias is None else bias[order]
    return as_linear(weight, bias)


def _order_by_kind(mixer: Any) -> Tensor:
    """The place of each feature in projections that the layer itself divides by head and then by kind."""
    sizes = [mixer.in_proj_qkvz.out_features, mixer.in_proj_ba.out_features]
    places = torch.arange(sum(sizes)).split(sizes)
    query, key, value, gate, beta, step = mixer.fix_query_key_value_ordering(*(each[None, None] for each in places))
    return torch.cat([each.flatten() for each in (query, key, value, gate, beta, step)])


@torch.inference_mode()
def _computes_the_same(mixer: nn.Module, cache_name: str, keys: tuple[StateKey, StateKey]) -> bool:
    """Compares both, with the same random weights in fp32: two prompts, then the rest of one beside a decoded token."""
    twin = _with_drawn_weights(mixer)
    device = next(twin.parameters()).device
    made = PackedDeltaNet(twin, keys)
    net = made.net
    own = {
        keys[0]: StateShape((net.channels, net.num_kept + 1), torch.float32, device),
        keys[1]: StateShape((net.num_value_heads, net.key_dim, net.value_dim), torch.float32, device),
    }
    grouped = GroupedMixer(twin, cache_name, keys)
    weight = next(made.in_proj.parameters())
    expected = _two_steps(grouped, StatePool(StateLayout(own), 2), weight, cache_name)
    found = _two_steps(made, StatePool(StateLayout(made.own_shapes(own)), 2), weight, cache_name)
    return bool(((found - expected).abs().max() <= TOLERANCE * expected.abs().max()).item())


def _with_drawn_weights(mixer: nn.Module) -> nn.Module:
    """A copy, in which each weight counts."""
    twin = copy.deepcopy(mixer).float()
    generator = torch.Generator().manual_seed(0)
    for parameter in twin.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(drawn * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1 + 0.3 * drawn)
    return twin


def _two_steps(mixer: RecurrentMixer, pool: StatePool, weight: Tensor, cache_name: str) -> Tensor:
    """The outputs of two steps, one after the other, of random rows as wide as the weight's."""
    generator = torch.Generator().manual_seed(1)
    outputs = []
    for step in ([Run(0, CHUNK, begins=True), Run(1, 7, begins=True)], [Run(1), Run(0, 2)]):
        batch = batch_of(step, weight.device)
        mixer.step = AttentionStep(batch, KVCache({}, 1, 1, torch.float32, weight.device), states=pool)
        hidden = torch.randn(1, batch.num_rows, weight.shape[1], generator=generator).to(weight.device)
        outputs.append(mixer(hidden, **{cache_name: None})[0])
    return torch.cat(outputs)


@dataclass(frozen=True)
class Run:
    """Rows of one sequence in a step; without a number of tokens a decoding one, which come first."""

    state: int
    num_tokens: int | None = None
    begins: bool = False


def batch_of(runs: Sequence[Run], device: torch.device) -> StepBatch:
    """A step of recurrent layers alone."""
    lengths = [run.num_tokens or 1 for run in runs]
    bounds = [0, *accumulate(lengths)]
    nothing = torch.zeros(1, bounds[-1], dtype=torch.long, device=device)
    states = torch.tensor([run.state for run in runs], device=device)
    rows = torch.arange(bounds[-1], device=device)
    num_decoding = sum(run.num_tokens is None for run in runs)
    chunks = [
        StateChunk(rows[start:end], states[[index]], run.begins)
        for index, (run, (start, end)) in enumerate(zip(runs, pairwise(bounds), strict=True))
        if run.num_tokens is not None
    ]
    begins = torch.tensor([run.begins for run in runs], device=device)
    sequences = SequenceRows(rows, torch.tensor(bounds, device=device), states, begins)
    by_state = StateRows(num_decoding, states[:num_decoding], chunks, sequences)
    return StepBatch(nothing, nothing, nothing[0], nothing[0], [], None, 0, states=by_state)
