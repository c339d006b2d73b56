"""A V4 shape that is as small as one can be, for tests in which many tokens count more than what they say."""

from __future__ import annotations

from typing import Any

TABLE: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "compress_ratios": [0, 4, 128],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "qk_rope_head_dim": 16,
    "q_lora_rank": 32,
    "o_groups": 2,
    "o_lora_rank": 32,
    "sliding_window": 128,
    "index_n_heads": 32,
    "index_head_dim": 32,
    "index_topk": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "num_hash_layers": 1,
    "num_nextn_predict_layers": 0,
    "swiglu_limit": 10.0,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "max_position_embeddings": 1048576,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def with_draft(kind: str, vocab_size: int) -> dict[str, Any]:
    """The shape with a draft model: "mtp", "dspark" or "none"."""
    values = TABLE | {"vocab_size": vocab_size}
    if kind == "mtp":
        values |= {"num_nextn_predict_layers": 1, "compress_ratios": [0, 4, 128, 0]}
    if kind == "dspark":
        values |= {
            "compress_ratios": [0, 4, 128, 0, 0],
            "dspark_block_size": 5,
            "dspark_noise_token_id": 2,
            "dspark_target_layer_ids": [1, 2],
            "dspark_markov_rank": 8,
        }
    return values
