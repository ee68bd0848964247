"""Fields of the types whose defaults are of no use, or whose small sizes depend on each other."""

from __future__ import annotations

from typing import Any

_IDS: dict[str, Any] = {"vocab_size": 512, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_SHAPE: dict[str, Any] = {
    **_IDS, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}  # fmt: skip
_MAMBA2: dict[str, Any] = {
    **_SHAPE, "num_hidden_layers": 3, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16,
    "mamba_chunk_size": 16,
}  # fmt: skip

_INDEXER: dict[str, Any] = {
    "head_dim": 16, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}  # fmt: skip
_TWO_LATENTS: dict[str, Any] = {
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4, "swa_q_lora_rank": 16, "swa_kv_lora_rank": 16, "swa_head_dim": 24,
    "swa_qk_nope_head_dim": 16, "swa_v_head_dim": 16,
}  # fmt: skip

#: Given before the sizes are cut.
FIELDS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "ministral": {"head_dim": 16},
    "qwen4_exp_text": _INDEXER,
    "qwen4_exp": {"text_config": _INDEXER},
    "dots3_note_text": _TWO_LATENTS,
    "dots3_note": {"text_config": _TWO_LATENTS},
    "blt": {"encoder_hash_byte_group_vocab": 512},
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip

#: Instead of all that.
WHOLE: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        **_MAMBA2, "layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 4, "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
    },
    "jamba": {
        **_SHAPE, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 8, "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "deepseek_v4": {
        **_IDS, "hidden_size": 64, "moe_intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 64, "q_lora_rank": 16, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "max_position_embeddings": 512, "sliding_window": 24, "o_groups": 2, "o_lora_rank": 16, "index_n_heads": 2,
        "index_head_dim": 64, "index_topk": 24,
    },
    "lfm2_moe": {
        **_SHAPE, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    },
    "longcat_flash": {
        **_IDS, "hidden_size": 64, "num_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 96, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8, "head_dim": 8, "v_head_dim": 16, "qk_head_dim": 24, "moe_topk": 2,
        "n_routed_experts": 8, "zero_expert_num": 2, "max_position_embeddings": 512,
    },
    "mamba2": {
        **_IDS, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 16, "num_heads": 8, "head_dim": 16,
        "n_groups": 1, "chunk_size": 16,
    },
    "zamba": {
        **_SHAPE, "num_hidden_layers": 6, "num_key_value_heads": 4, "n_mamba_heads": 2, "mamba_d_state": 8,
        "mamba_dt_rank": 4, "use_mamba_kernels": False,
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "hybrid", "mamba"],
    },
    "zamba2": {
        **_SHAPE, "num_hidden_layers": 6, "num_key_value_heads": 4, "n_mamba_heads": 8, "mamba_d_state": 16,
        "chunk_size": 16, "adapter_rank": 8, "use_mamba_kernels": False,
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "hybrid", "mamba"],
    },
    "xlstm": {
        **_IDS, "hidden_size": 128, "embedding_dim": 128, "num_hidden_layers": 2, "num_blocks": 2, "num_heads": 2,
        "chunk_size": 16,
    },
    "reformer": {
        **_IDS, "hidden_size": 64, "attention_head_size": 16, "attn_layers": ["local", "lsh", "local", "lsh"],
        "axial_pos_shape": [16, 32], "axial_pos_embds_dim": [32, 32], "feed_forward_size": 96, "is_decoder": True,
        "local_attn_chunk_length": 16, "lsh_attn_chunk_length": 16, "max_position_embeddings": 512,
        "num_attention_heads": 4, "num_buckets": 4, "hash_seed": 0,
    },
}  # fmt: skip
