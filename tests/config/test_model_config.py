"""A config.json is read as data in every released spelling, and what is not implemented is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import DeepseekV4Config

from dsv4_backend.config import (
    DraftKind,
    ExpertFormat,
    LayerKind,
    RopeSpec,
    YarnSpec,
    load_model_config,
    parse_model_config,
)
from dsv4_backend.errors import ConfigError

YARN = {"type": "yarn", "factor": 16, "original_max_position_embeddings": 65536, "beta_fast": 32, "beta_slow": 1}
FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
    "scale_fmt": "ue8m0",
}
FLASH: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "vocab_size": 129280,
    "hidden_size": 4096,
    "num_hidden_layers": 43,
    "num_attention_heads": 64,
    "num_key_value_heads": 1,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "sliding_window": 128,
    "compress_ratios": [0, 0, *([4, 128] * 20), 4, 0],
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 512,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": YARN,
    "max_position_embeddings": 1048576,
    "n_routed_experts": 256,
    "num_experts_per_tok": 6,
    "n_shared_experts": 1,
    "moe_intermediate_size": 2048,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "num_hash_layers": 3,
    "swiglu_limit": 10.0,
    "num_nextn_predict_layers": 1,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.02,
    "use_cache": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.1",
    "quantization_config": FP8,
    "expert_dtype": "fp4",
}
PRO = FLASH | {
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "o_groups": 16,
    "compress_ratios": [128, 128, *([4, 128] * 29), 4, 0],
    "index_topk": 1024,
    "n_routed_experts": 384,
    "moe_intermediate_size": 3072,
    "routed_scaling_factor": 2.5,
}
DSPARK = {"dspark_block_size": 5, "dspark_noise_token_id": 128799}
FLASH_0731 = (
    FLASH
    | DSPARK
    | {
        "compress_ratios": [0, 0, *([4, 128] * 20), 4, 0, 0, 0],
        "dspark_target_layer_ids": [40, 41, 42],
        "dspark_markov_rank": 256,
    }
)
PRO_0813 = (
    PRO
    | DSPARK
    | {
        "compress_ratios": [128, 128, *([4, 128] * 29), 4, 0, 0, 0],
        "dspark_target_layer_ids": [58, 59, 60],
        "dspark_markov_rank": 512,
    }
)
FLASH_INFERENCE: dict[str, Any] = {
    "vocab_size": 129280,
    "dim": 4096,
    "n_layers": 43,
    "n_hash_layers": 3,
    "n_heads": 64,
    "head_dim": 512,
    "rope_head_dim": 64,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "window_size": 128,
    "compress_ratios": [0, 0, *([4, 128] * 20), 4, 0],
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 512,
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "original_seq_len": 65536,
    "rope_factor": 16,
    "beta_fast": 32,
    "beta_slow": 1,
    "n_routed_experts": 256,
    "n_activated_experts": 6,
    "n_shared_experts": 1,
    "moe_inter_dim": 2048,
    "score_func": "sqrtsoftplus",
    "route_scale": 1.5,
    "swiglu_limit": 10.0,
    "n_mtp_layers": 1,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "norm_eps": 1e-6,
    "dtype": "fp8",
    "scale_fmt": "ue8m0",
    "expert_dtype": "fp4",
}


def problems_of(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_model_config(values)
    return str(caught.value)


def test_flash_has_two_window_layers_then_csa_and_hca_in_turn() -> None:
    config = parse_model_config(FLASH)
    assert config.layer_ids(LayerKind.WINDOW) == (0, 1)
    assert config.layer_ids(LayerKind.CSA) == tuple(range(2, 43, 2))
    assert config.layer_ids(LayerKind.HCA) == tuple(range(3, 42, 2))


def test_pro_has_31_hca_and_30_csa_layers_and_no_window_layer() -> None:
    config = parse_model_config(PRO)
    assert config.layer_ids(LayerKind.WINDOW) == ()
    assert config.layer_ids(LayerKind.CSA) == tuple(range(2, 61, 2))
    assert config.layer_ids(LayerKind.HCA) == (0, 1, *range(3, 60, 2))


@pytest.mark.parametrize("values", [FLASH, PRO], ids=["flash", "pro"])
def test_the_first_three_layers_are_routed_by_token_id(values: dict[str, Any]) -> None:
    layers = parse_model_config(values).layers
    assert [index for index, layer in enumerate(layers) if layer.is_hash_routed] == [0, 1, 2]


def test_only_compressed_layers_use_yarn() -> None:
    yarn = YarnSpec(factor=16.0, original_tokens=65536, beta_fast=32.0, beta_slow=1.0)
    ropes = {layer.kind: layer.rope for layer in parse_model_config(FLASH).layers}
    assert ropes[LayerKind.WINDOW] == RopeSpec(theta=10_000.0)
    assert ropes[LayerKind.CSA] == ropes[LayerKind.HCA] == RopeSpec(theta=160_000.0, yarn=yarn)


def test_pro_numbers_are_those_of_the_release() -> None:
    config = parse_model_config(PRO)
    assert (config.hidden_size, config.num_heads, config.q_lora_rank, config.o_groups) == (7168, 128, 1536, 16)
    assert (config.num_experts, config.num_active_experts, config.moe_size) == (384, 6, 3072)
    assert (config.index_topk, config.routed_scale, config.nope_dim) == (1024, 2.5, 448)


def test_the_inference_spelling_reads_the_same_as_the_official_one() -> None:
    assert parse_model_config(FLASH_INFERENCE) == parse_model_config(FLASH)


@pytest.mark.parametrize("values", [FLASH, PRO, FLASH_0731], ids=["flash", "pro", "flash_0731"])
@pytest.mark.parametrize("use_diff", [True, False])
def test_a_config_written_by_transformers_reads_the_same_as_the_official_one(
    values: dict[str, Any], use_diff: bool
) -> None:
    written = json.loads(DeepseekV4Config(**values).to_json_string(use_diff=use_diff))
    assert parse_model_config(written) == parse_model_config(values)


@pytest.mark.parametrize(
    ("values", "targets", "rank"),
    [(FLASH_0731, (40, 41, 42), 256), (PRO_0813, (58, 59, 60), 512)],
    ids=["flash_0731", "pro_0813"],
)
def test_dspark_is_announced_by_its_own_keys(values: dict[str, Any], targets: tuple[int, ...], rank: int) -> None:
    draft = parse_model_config(values).draft
    assert (draft.kind, draft.num_stages, draft.target_layer_ids) == (DraftKind.DSPARK, 3, targets)
    assert (draft.block_tokens, draft.noise_token_id, draft.markov_rank) == (5, 128799, rank)


def test_a_refreshed_release_has_the_backbone_of_its_preview() -> None:
    assert parse_model_config(PRO_0813).layers == parse_model_config(PRO).layers


def test_the_preview_announces_one_mtp_stage() -> None:
    draft = parse_model_config(FLASH).draft
    assert (draft.kind, draft.num_stages) == (DraftKind.MTP, 1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ExpertFormat.MXFP4),
        ({"expert_dtype": "fp8"}, ExpertFormat.FP8),
        ({"quantization_config": FP8 | {"moe_quant_algo": "NVFP4", "quantized_layers": {}}}, ExpertFormat.NVFP4),
        ({"quantization_config": None, "expert_dtype": None}, ExpertFormat.BF16),
    ],
    ids=["mxfp4", "fp8", "nvfp4", "bf16"],
)
def test_expert_format_follows_the_quantisation_keys(changes: dict[str, Any], expected: ExpertFormat) -> None:
    assert parse_model_config(FLASH | changes).quant.experts is expected


def test_draft_experts_stay_mxfp4_in_an_nvfp4_checkpoint() -> None:
    quant = parse_model_config(FLASH | {"quantization_config": FP8 | {"moe_quant_algo": "NVFP4"}}).quant
    assert quant.draft_experts is ExpertFormat.MXFP4


def test_v41_is_refused_by_name() -> None:
    assert "'deepseek_v41'" in problems_of({"model_type": "deepseek_v41", "text_config": {}})


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    message = problems_of(FLASH | {"index_topkk": 7})
    assert "unknown key index_topkk (did you mean index_topk?)" in message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"candidate_block_size": 8}, "candidate_block_size"),
        ({"engram_layer_ids": [1, 14]}, "engram_layer_ids"),
        ({"vision_config": {}}, "vision_config"),
        ({"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
        ({"compress_ratios": [2] * 44}, "compress_ratios holds [2]"),
        ({"compress_ratios": [4] * 3}, "compress_ratios has 3 entries but num_hidden_layers is 43"),
        ({"compress_rates": {"compressed_sparse_attention": 3}}, "compressed_sparse_attention is 3"),
        ({"rope_scaling": YARN | {"mscale": 1.0}}, "rope_scaling: unknown key mscale"),
        ({"rope_scaling": YARN | {"factor": "16"}}, "rope_scaling: factor is '16'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_type is 'linear'"),
        ({"quantization_config": FP8 | {"weight_block_size": [32, 32]}}, "weight_block_size is [32, 32]"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method is 'awq'"),
        ({"n_shared_experts": 2}, "n_shared_experts is 2"),
        ({"swiglu_limit": 0.0}, "swiglu_limit is 0.0"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"index_head_dim": 96}, "index_head_dim is 96"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"o_groups": 7}, "o_groups is 7"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    assert named in problems_of(FLASH | changes)


def test_every_problem_is_listed_at_once() -> None:
    message = problems_of(FLASH | {"hidden_size": "wide", "o_groups": 7, "novelty": 1})
    assert all(part in message for part in ("hidden_size is 'wide'", "o_groups is 7", "unknown key novelty"))


def test_a_missing_key_is_named() -> None:
    assert "q_lora_rank is missing" in problems_of({key: FLASH[key] for key in FLASH if key != "q_lora_rank"})


def test_a_config_file_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PRO), "utf-8")
    assert load_model_config(tmp_path) == parse_model_config(PRO)


@pytest.mark.parametrize("text", ["", "[1]", "{"], ids=["empty", "list", "cut"])
def test_a_damaged_config_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_model_config(tmp_path)
