"""Read a config.json into a ModelConfig: every problem is named, and what is not implemented is refused.

Spellings of the official repositories, of their `inference/config.json`, and of transformers are accepted.
"""

from __future__ import annotations

import json
from pathlib import Path

from dsv4_backend.config.fields import Fields
from dsv4_backend.config.layers import read_layers
from dsv4_backend.config.model import (
    PAGE_TOKENS,
    DraftKind,
    DraftSpec,
    ExpertFormat,
    LayerKind,
    LayerSpec,
    ModelConfig,
    QuantSpec,
)
from dsv4_backend.errors import ConfigError

_HARMLESS = frozenset(
    "architectures attention_dropout auto_map bos_token_id default_compress_rates dtype eos_token_id"
    " initializer_range intermediate_size max_batch_size max_seq_len"
    " output_router_logits pad_token_id"
    " partial_rotary_factor pretraining_tp rope_type router_aux_loss_coef router_jitter_noise scale_fmt torch_dtype"
    " transformers_version use_cache _name_or_path return_dict output_hidden_states output_attentions"
    " chunk_size_feed_forward id2label label2id problem_type is_encoder_decoder ep_size aux_loss_alpha"
    " seq_aux".split()
)


def load_model_config(path: Path) -> ModelConfig:
    """Read `config.json` in `path` (a folder) or `path` itself.

    Raises: ConfigError with every problem found.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{file} does not exist. Name a checkpoint folder that holds a config.json.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{file} cannot be read as JSON: {error}. Restore the file from the release.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds a {type(values).__name__} but must hold a JSON object.")
    try:
        return parse_model_config(values)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def parse_model_config(values: dict[str, object]) -> ModelConfig:
    """Turn the JSON object of a config.json into a ModelConfig.

    Raises: ConfigError naming every missing, wrong or unknown key.
    """
    model_type = values.get("model_type", "deepseek_v4")
    if model_type != "deepseek_v4":
        raise ConfigError(f"model_type is {model_type!r}; this runtime implements 'deepseek_v4' only.")
    fields = Fields(values)
    fields.get("model_type", "num_key_value_heads")
    for name, allowed in _FIXED.items():
        fields.require(name, allowed)
    layers, draft_layer = read_layers(fields)
    draft = _draft(fields, draft_layer)
    config = _model(fields, layers, draft)
    fields.refuse_unknown(_HARMLESS)
    _check_shapes(config, fields.problems)
    if fields.problems:
        raise ConfigError("the model config cannot be used:\n" + "\n".join(f"  - {item}" for item in fields.problems))
    return config


_FIXED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "tie_word_embeddings": (False,),
    "scoring_func": ("sqrtsoftplus",),
    "score_func": ("sqrtsoftplus",),
    "topk_method": ("noaux_tc",),
    "norm_topk_prob": (True,),
    "num_key_value_heads": (1,),
    "n_group": (1,),
    "topk_group": (1,),
    "n_shared_experts": (1,),
    "mlp_bias": (False,),
    "first_k_dense_replace": (0,),
    "moe_layer_freq": (1,),
}
_QUANT_FIXED: dict[str, tuple[object, ...]] = {
    "weight_block_size": ([128, 128],),
    "fmt": ("e4m3",),
    "scale_fmt": ("ue8m0",),
    "activation_scheme": ("dynamic",),
    "moe_quant_algo": ("NVFP4",),
    "kv_cache_quant_algo": (),
}


def _model(fields: Fields, layers: tuple[LayerSpec, ...], draft: DraftSpec) -> ModelConfig:
    head_dim = fields.integer("head_dim", default=512)
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size", "dim"),
        layers=layers,
        num_heads=fields.integer("num_attention_heads", "n_heads"),
        head_dim=head_dim,
        rope_dim=_rope_dim(fields, head_dim),
        q_lora_rank=fields.integer("q_lora_rank"),
        o_groups=fields.integer("o_groups"),
        o_lora_rank=fields.integer("o_lora_rank"),
        window=fields.integer("sliding_window", "window_size", default=128),
        index_heads=fields.integer("index_n_heads", default=64),
        index_head_dim=fields.integer("index_head_dim", default=128),
        index_topk=fields.integer("index_topk", default=512),
        num_experts=fields.integer("n_routed_experts", "num_local_experts"),
        num_active_experts=fields.integer("num_experts_per_tok", "n_activated_experts"),
        num_shared_experts=1,
        moe_size=fields.integer("moe_intermediate_size", "moe_inter_dim"),
        routed_scale=fields.real("routed_scaling_factor", "route_scale"),
        swiglu_limit=fields.real("swiglu_limit", default=10.0),
        hc_mult=fields.integer("hc_mult", default=4),
        hc_iterations=fields.integer("hc_sinkhorn_iters", default=20),
        hc_eps=fields.real("hc_eps", default=1e-6),
        norm_eps=fields.real("rms_norm_eps", "norm_eps", default=1e-6),
        max_positions=fields.integer("max_position_embeddings", default=1_048_576),
        bos_token_id=_token_ids(fields, "bos_token_id", 0)[0],
        eos_token_ids=_token_ids(fields, "eos_token_id", 1),
        quant=_quant(fields),
        draft=draft,
    )


def _rope_dim(fields: Fields, head_dim: int) -> int:
    """Rotated channels: named outright, or as a share of the head (transformers); both must agree."""
    share = fields.real("partial_rotary_factor", default=0.0)
    named = fields.integer("qk_rope_head_dim", "rope_head_dim", default=int(head_dim * share) or 64)
    if share and named != int(head_dim * share):
        fields.problems.append(
            f"partial_rotary_factor is {share}, {int(head_dim * share)} of {head_dim} channels, but qk_rope_head_dim"
            f" is {named}. Drop one of them."
        )
    return named


def _token_ids(fields: Fields, name: str, default: int) -> tuple[int, ...]:
    value = fields.get(name)
    ids = value if isinstance(value, list) else [default if value is None else value]
    if not ids or not all(isinstance(item, int) for item in ids):
        fields.problems.append(f"{name} is {value!r} but must be a token id or a list of them.")
        return (default,)
    return tuple(ids)


def _quant(fields: Fields) -> QuantSpec:
    section = Fields(fields.section("quantization_config"))
    method = section.text("quant_method") or fields.text("quantization") or _inference_dtype(fields)
    expert = fields.text("expert_dtype") or section.text("expert_dtype")
    for name, allowed in _QUANT_FIXED.items():
        section.require(name, allowed)
    if method not in ("", "fp8", "modelopt", "bf16"):
        section.problems.append(f"quant_method is {method!r}; this runtime implements 'fp8' (and modelopt's NVFP4).")
    is_fp8 = method in ("fp8", "modelopt")
    stored = {"": ExpertFormat.BF16, "bf16": ExpertFormat.BF16}
    if is_fp8:
        stored = {"fp4": ExpertFormat.MXFP4, "fp8": ExpertFormat.FP8, "": ExpertFormat.MXFP4}
    if expert not in stored:
        fields.problems.append(f"expert_dtype is {expert!r}; with quant_method {method!r} it may be {sorted(stored)}.")
    fields.adopt("quantization_config", section)
    experts = stored.get(expert, ExpertFormat.BF16)
    is_nvfp4 = section.text("moe_quant_algo") == "NVFP4" or section.get("quantized_layers") is not None
    return QuantSpec(is_dense_fp8=is_fp8, experts=ExpertFormat.NVFP4 if is_nvfp4 else experts, draft_experts=experts)


def _inference_dtype(fields: Fields) -> str:
    """`dtype: fp8` is inference/config.json's spelling; transformers uses `dtype` for the tensor type."""
    return "fp8" if fields.get("dtype") == "fp8" else ""


def _draft(fields: Fields, layer: LayerSpec) -> DraftSpec:
    """DSpark is announced by its own keys, never by num_nextn_predict_layers, which stays 1."""
    num_mtp = fields.integer("num_nextn_predict_layers", default=0, minimum=0)
    num_stages = fields.integer("n_mtp_layers", default=num_mtp, minimum=0)
    targets = fields.integers("dspark_target_layer_ids")
    if targets is None:
        kind = DraftKind.MTP if num_stages else DraftKind.NONE
        return DraftSpec(kind=kind, layer=layer, num_stages=num_stages)
    for name in ("dspark_markov_head_type", "dspark_sample_from_anchor", "dspark_enable_confidence_head",
                 "dspark_confidence_head_with_markov"):  # fmt: skip
        fields.require(name, (True, "vanilla"))
    return DraftSpec(
        kind=DraftKind.DSPARK,
        layer=layer,
        num_stages=len(targets),
        block_tokens=fields.integer("dspark_block_size", default=5),
        noise_token_id=fields.integer("dspark_noise_token_id", minimum=0),
        target_layer_ids=targets,
        markov_rank=fields.integer("dspark_markov_rank", default=256),
    )


def _check_shapes(config: ModelConfig, problems: list[str]) -> None:
    rope_dim, index_dim = config.rope_dim, config.index_head_dim
    if rope_dim % 2 or rope_dim >= config.head_dim:
        problems.append(f"qk_rope_head_dim is {rope_dim} but must be even and below head_dim {config.head_dim}.")
    if config.layer_ids(LayerKind.CSA) and (index_dim & (index_dim - 1) or index_dim < rope_dim):
        problems.append(f"index_head_dim is {index_dim} but must be a power of two of at least {rope_dim}.")
    if config.num_heads % config.o_groups:
        problems.append(f"o_groups is {config.o_groups} but must divide num_attention_heads {config.num_heads}.")
    if config.num_active_experts > config.num_experts:
        problems.append(
            f"num_experts_per_tok {config.num_active_experts} exceeds n_routed_experts {config.num_experts}."
        )
    if config.window > PAGE_TOKENS:
        problems.append(f"sliding_window is {config.window}; this runtime implements up to {PAGE_TOKENS} tokens.")
    if config.swiglu_limit <= 0:
        problems.append(f"swiglu_limit is {config.swiglu_limit} but must be above 0 (V4 uses 10).")
