"""The released configs, so that `dsv4 plan pro` and `dsv4 plan flash` need no file.

Source: shared facts `deepseek_v4.md` section 1. The MTP block is left out: it is not loaded until a drafter runs.
"""

from __future__ import annotations

from dsv4_backend.config import ModelConfig, parse_model_config

_COMMON: dict[str, object] = {
    "model_type": "deepseek_v4",
    "vocab_size": 129_280,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "o_lora_rank": 1024,
    "sliding_window": 128,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "num_experts_per_tok": 6,
    "num_hash_layers": 3,
    "rope_scaling": {"rope_type": "yarn", "factor": 16, "original_max_position_embeddings": 65_536},
    "quantization_config": {"quant_method": "fp8"},
    "expert_dtype": "fp4",
}
_BUNDLED: dict[str, dict[str, object]] = {
    "pro": {
        "num_hidden_layers": 61,
        "hidden_size": 7168,
        "compress_ratios": [128, 128, *[4, 128] * 29, 4],
        "num_attention_heads": 128,
        "q_lora_rank": 1536,
        "o_groups": 16,
        "index_topk": 1024,
        "n_routed_experts": 384,
        "moe_intermediate_size": 3072,
        "routed_scaling_factor": 2.5,
    },
    "flash": {
        "num_hidden_layers": 43,
        "hidden_size": 4096,
        "compress_ratios": [0, 0, *[4, 128] * 20, 4],
        "num_attention_heads": 64,
        "q_lora_rank": 1024,
        "o_groups": 8,
        "index_topk": 512,
        "n_routed_experts": 256,
        "moe_intermediate_size": 2048,
        "routed_scaling_factor": 1.5,
    },
}
BUNDLED_NAMES = tuple(_BUNDLED)


def bundled_config(name: str) -> ModelConfig | None:
    """Return the released config of that name (`pro`, `flash`), or None."""
    values = _BUNDLED.get(name)
    return None if values is None else parse_model_config(_COMMON | values)
