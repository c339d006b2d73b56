"""The config.json of the small model, and what the trainer reads from it."""

from __future__ import annotations

from dsv4_backend.config import ModelConfig, parse_model_config

NAME = "dsv4-nano"
ALIGNMENT = 4  # documents begin at multiples of the CSA ratio, so that its blocks never cross documents
CHUNK = 64  # queries that attend together


def nano_values(vocab_size: int, **changes: object) -> dict[str, object]:
    """Return config.json values of the small model; `changes` replace single keys."""
    values: dict[str, object] = {
        "_name_or_path": NAME,
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "vocab_size": vocab_size,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_size": 192,
        "num_hidden_layers": 8,
        "num_hash_layers": 3,
        "compress_ratios": [0, 0, 4, 4, 4, 128, 4, 4, 0],
        "num_attention_heads": 6,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "qk_rope_head_dim": 32,
        "q_lora_rank": 192,
        "o_groups": 3,
        "o_lora_rank": 128,
        "sliding_window": 128,
        "index_n_heads": 32,
        "index_head_dim": 32,
        "index_topk": 64,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "routed_scaling_factor": 1.5,
        "scoring_func": "sqrtsoftplus",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "swiglu_limit": 10.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-06,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000,
        "compress_rope_theta": 160000,
        "rope_scaling": {
            "type": "yarn",
            "factor": 16,
            "original_max_position_embeddings": 65536,
            "beta_fast": 32,
            "beta_slow": 1,
        },
        "max_position_embeddings": 1048576,
        "num_nextn_predict_layers": 1,
    }
    return values | changes


def read_config(values: dict[str, object]) -> ModelConfig:
    """Return the architecture. Raises: ConfigError if the values cannot be used."""
    return parse_model_config(dict(values))
