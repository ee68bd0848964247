"""Small random models with recurrent layers, one of each kind that Transformers has, beside their `generate`."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.random_models import VOCAB, WINDOW, Pair
from worker.engine.backend import LoadOptions
from worker.engine.model_loader import prepare_model

_IDS: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SHAPE: dict[str, Any] = {
    **_IDS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": WINDOW,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_DELTA: dict[str, Any] = {
    **_SHAPE,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_SHORT_CONV: dict[str, Any] = {**_SHAPE, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
_MAMBA2: dict[str, Any] = {
    **_SHAPE,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
}
_MAMBA: dict[str, Any] = {**_IDS, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}

HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_5_text": _DELTA,
    "qwen3_next": {**_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_5_moe_text": {**_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 32},
    "olmo_hybrid": _DELTA,
    "kimi_linear": {
        **_SHAPE,
        "num_key_value_heads": 4,
        "num_hidden_layers": 3,
        "linear_attn_config": {
            "num_heads": 4,
            "head_dim": 16,
            "short_conv_kernel_size": 4,
            "kda_layers": [1, 3],
            "full_attn_layers": [2],
        },
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "moe_intermediate_size": 32,
        "num_shared_experts": 1,
    },
    "lfm2": _SHORT_CONV,
    "lfm2_moe": {**_SHORT_CONV, **_EXPERTS},
    "lfm3": _SHORT_CONV,
    "bamba": {**_MAMBA2, "num_hidden_layers": 3, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        **_MAMBA2,
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
    },
    "falcon_h1": {**_MAMBA2, "num_hidden_layers": 2, "mamba_d_ssm": 128},
    "nemotron_h": {
        **_SHAPE,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "full_attention", "mlp", "linear_attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "ssm_state_size": 16,
        "chunk_size": 16,
    },
    "mamba": _MAMBA,
    "falcon_mamba": _MAMBA,
    "mamba2": {**_MAMBA, "state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    "jamba": {
        **_SHAPE,
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
}


#: States as large as those of published models, of which torch multiplies many at once in another order than few.
LARGE_STATES: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 16, "hidden_size": 192},
    "mamba2": {"hidden_size": 128, "state_size": 128, "head_dim": 64, "num_heads": 4},
    "falcon_h1": {"mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_heads": 2, "mamba_d_ssm": 128},
    "olmo_hybrid": {"linear_key_head_dim": 128, "linear_value_head_dim": 128},
    "qwen3_5_text": {"linear_key_head_dim": 128, "linear_value_head_dim": 128},
}
LARGE = " of large states"


@cache
def hybrid_pair(kind: str, dtype: torch.dtype = torch.float32, options: LoadOptions = LoadOptions()) -> Pair:
    """A model of the kind whose weights depend on its name alone."""
    model = hybrid_model(kind, dtype)
    return Pair(copy.deepcopy(model), prepare_model(kind, model, None, torch.device("cpu"), options))


def hybrid_model(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(sum(map(ord, kind)))
    model_type = kind.removesuffix(LARGE)
    sizes = HYBRIDS[model_type] | (LARGE_STATES[model_type] if kind.endswith(LARGE) else {})
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes)).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not any(part in name for part in ("conv", "A_log", "dt_")):
                parameter.mul_(6.0)
    return model
