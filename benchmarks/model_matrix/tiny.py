"""A tiny random model of a type: its configuration's defaults, with every size cut."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.model_matrix.own_sizes import FIELDS, WHOLE
from worker.engine.loading.twin import Cut, built, cut_layers, cut_vocabulary, cut_widths, small_config

WINDOW = 512

#: Sizes by the names that architectures have for them.
SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("embedding_size", "hidden_dim", "attention_hidden_size", "lru_width", "d_embed", "emb_dim"), 64),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(("swa_num_attention_heads",), 4),
    **dict.fromkeys(("swa_num_key_value_heads",), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "kv_channels", "attention_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(
        ("global_head_dim", "indexer_head_dim", "swa_v_head_dim", "qk_nope_head_dim", "rotary_dim_unused"), 16
    ),
    **dict.fromkeys(("qk_rope_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "d_ff"), 96),
    **dict.fromkeys(("ffn_hidden_size", "expert_ffn_hidden_size"), 96),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("vocab_size_per_layer_input",), 512),
    "hidden_size_per_layer_input": 16,
    "laurel_rank": 8,
    "rotary_dim": 8,
    "mamba_n_heads": 8,
    "mamba_num_heads": 8,
    "mamba_d_head": 16,
    "mamba_head_dim": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_d_ssm": 128,
    "mamba_headdim": 16,
    "n_mamba_heads": 2,
    "d_head": 16,
    "ssm_state_size": 16,
    "state_size": 16,
    "time_step_rank": 8,
    "mamba_dt_rank": 8,
    "query_pre_attn_scalar": 16,
    "index_n_heads": 2,
}
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "context_length", "n_ctx")
LAYERS = 4


def model_types() -> list[str]:
    """Every type of which the installed Transformers has a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_model(model_type: str) -> Any:
    """A model in fp32, the same on every machine. Raises what Transformers raises where these sizes do not suit."""
    errors: list[Exception] = []
    for fewer in ((), ("head_dim",), ("num_attention_heads", "num_key_value_heads")):
        try:
            return built(tiny_config(model_type, fewer), torch.device("cpu"))
        except Exception as error:  # architectures check their sizes in ways of their own
            errors.append(error)
    raise errors[0]


def tiny_config(model_type: str, kept: Iterable[str] = ()) -> Any:
    """The type's default configuration with small sizes, but for the fields `kept`."""
    if model_type in WHOLE:
        return AutoConfig.for_model(model_type, **WHOLE[model_type])
    cuts: tuple[Cut, ...] = (cut_vocabulary, cut_layers, cut_widths, lambda fields: _cut_sizes(fields, set(kept)))
    return small_config(AutoConfig.for_model(model_type, **FIELDS.get(model_type, {})), cuts)


def _cut_sizes(fields: dict[str, Any], kept: set[str]) -> None:
    for name, value in fields.items():
        if name in SIZES and name not in kept and (value is not None or name == "head_dim"):
            fields[name] = [SIZES[name] for _ in value] if isinstance(value, list) else SIZES[name]
        elif name in POSITIONS and isinstance(value, int):
            fields[name] = WINDOW
    if isinstance(fields.get("qk_rope_head_dim"), int):  # latent attention computes these two
        for name in ("head_dim", "qk_head_dim"):
            fields.pop(name, None)
        fields["num_key_value_heads"] = fields.get("num_attention_heads")
    if fields.get("num_key_value_heads", 0) is None and "num_attention_heads" in fields:
        fields["num_key_value_heads"] = fields["num_attention_heads"]
