"""The architecture of one checkpoint, read from its config.json as data.

Source: shared facts `deepseek_v4.md` section 1; spellings of the official repositories, of their
`inference/config.json`, and of transformers are accepted. What is not implemented is refused by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from dsv4_backend.config.fields import Fields
from dsv4_backend.errors import ConfigError

PAGE_TOKENS = 128

_HARMLESS = frozenset(
    "architectures attention_dropout auto_map bos_token_id default_compress_rates dtype eos_token_id"
    " first_k_dense_replace initializer_range intermediate_size max_batch_size max_seq_len mlp_bias"
    " output_router_logits pad_token_id"
    " partial_rotary_factor pretraining_tp rope_type router_aux_loss_coef router_jitter_noise scale_fmt torch_dtype"
    " transformers_version use_cache _name_or_path return_dict output_hidden_states output_attentions"
    " chunk_size_feed_forward id2label label2id problem_type is_encoder_decoder moe_layer_freq ep_size aux_loss_alpha"
    " seq_aux".split()
)
_LAYER_TYPES = {
    "sliding_attention": 0,
    "compressed_sparse_attention": 4,
    "heavily_compressed_attention": 128,
}


class LayerKind(str, Enum):
    """What a layer attends to besides its 128-token window."""

    WINDOW = "window"  # nothing more
    CSA = "csa"  # indexer's choice among overlapping compressed entries
    HCA = "hca"  # every heavily compressed entry


class ExpertFormat(str, Enum):
    """How routed experts are stored."""

    BF16 = "bf16"
    FP8 = "fp8"
    MXFP4 = "mxfp4"
    NVFP4 = "nvfp4"


class DraftKind(str, Enum):
    """Which draft model a checkpoint carries."""

    NONE = "none"
    MTP = "mtp"
    DSPARK = "dspark"


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnSpec:
    """YaRN frequency interpolation; no mscale anywhere in V4."""

    factor: float
    original_tokens: int
    beta_fast: float
    beta_slow: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary embedding of one family of layers."""

    theta: float
    yarn: YarnSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One layer's roles. Units: ratio in tokens per compressed entry, 0 for none."""

    kind: LayerKind
    ratio: int
    is_hash_routed: bool
    rope: RopeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantSpec:
    """Storage of the quantised tensors. is_dense_fp8: attention projections and shared experts are FP8 128x128."""

    is_dense_fp8: bool
    experts: ExpertFormat
    draft_experts: ExpertFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftSpec:
    """The draft model that the config announces; its tensors are skipped by name until a drafter uses them."""

    kind: DraftKind
    num_stages: int = 0
    block_tokens: int = 0
    noise_token_id: int = -1
    target_layer_ids: tuple[int, ...] = ()
    markov_rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """DeepSeek-V4 as numbers. Names follow the official tensors and config keys."""

    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    num_heads: int
    head_dim: int
    rope_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    window: int
    index_heads: int
    index_head_dim: int
    index_topk: int
    num_experts: int
    num_active_experts: int
    num_shared_experts: int
    moe_size: int
    routed_scale: float
    swiglu_limit: float
    hc_mult: int
    hc_iterations: int
    hc_eps: float
    norm_eps: float
    max_positions: int
    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    quant: QuantSpec
    draft: DraftSpec

    @property
    def num_layers(self) -> int:
        """Backbone layers, without draft stages."""
        return len(self.layers)

    @property
    def nope_dim(self) -> int:
        """Channels of a head that are not rotated."""
        return self.head_dim - self.rope_dim

    def layer_ids(self, kind: LayerKind) -> tuple[int, ...]:
        """Ids of the backbone layers of one kind, ascending."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.kind is kind)


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
    draft = _draft(fields)
    layers = _layers(fields)
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
}


def _model(fields: Fields, layers: tuple[LayerSpec, ...], draft: DraftSpec) -> ModelConfig:
    head_dim = fields.integer("head_dim", default=512)
    partial = fields.values.get("partial_rotary_factor")
    rope_default = int(head_dim * partial) if isinstance(partial, (int, float)) else 64
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size", "dim"),
        layers=layers,
        num_heads=fields.integer("num_attention_heads", "n_heads"),
        head_dim=head_dim,
        rope_dim=fields.integer("qk_rope_head_dim", "rope_head_dim", default=rope_default),
        q_lora_rank=fields.integer("q_lora_rank"),
        o_groups=fields.integer("o_groups"),
        o_lora_rank=fields.integer("o_lora_rank"),
        window=fields.integer("sliding_window", "window_size", default=128),
        index_heads=fields.integer("index_n_heads", default=64),
        index_head_dim=fields.integer("index_head_dim", default=128),
        index_topk=fields.integer("index_topk", default=512),
        num_experts=fields.integer("n_routed_experts", "num_local_experts"),
        num_active_experts=fields.integer("num_experts_per_tok", "n_activated_experts"),
        num_shared_experts=fields.integer("n_shared_experts", default=1),
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


def _token_ids(fields: Fields, name: str, default: int) -> tuple[int, ...]:
    value = fields.get(name)
    ids = value if isinstance(value, list) else [default if value is None else value]
    if not ids or not all(isinstance(item, int) for item in ids):
        fields.problems.append(f"{name} is {value!r} but must be a token id or a list of them.")
        return (default,)
    return tuple(ids)


def _layers(fields: Fields) -> tuple[LayerSpec, ...]:
    num_layers = fields.integer("num_hidden_layers", "n_layers")
    num_hash = fields.integer("num_hash_layers", "n_hash_layers", default=_num_hash(fields), minimum=0)
    ratios = _ratios(fields, num_layers)
    plain, compressed = _ropes(fields)
    specs = []
    for index, (kind, ratio) in enumerate(ratios):
        rope = plain if kind is LayerKind.WINDOW else compressed
        specs.append(LayerSpec(kind=kind, ratio=ratio, is_hash_routed=index < num_hash, rope=rope))
    return tuple(specs)


def _num_hash(fields: Fields) -> int:
    types = fields.names("mlp_layer_types")
    if types is None:
        return 3
    num_hash = sum(item == "hash_moe" for item in types)
    if list(types) != ["hash_moe"] * num_hash + ["moe"] * (len(types) - num_hash):
        fields.problems.append("mlp_layer_types must be 'hash_moe' for the first layers, then 'moe'.")
    return num_hash


def _ratios(fields: Fields, num_layers: int) -> list[tuple[LayerKind, int]]:
    """Kind and ratio of each backbone layer, from `compress_ratios` or from `layer_types` and `compress_rates`."""
    kinds = {0: LayerKind.WINDOW, 4: LayerKind.CSA, 128: LayerKind.HCA}
    rates = fields.section("compress_rates")
    real = {key: rates.get(name, key) for name, key in _LAYER_TYPES.items()}
    types = fields.names("layer_types")
    ratios = fields.integers("compress_ratios")
    if types is not None:
        unknown = sorted(set(types) - set(_LAYER_TYPES))
        if unknown:
            fields.problems.append(f"layer_types holds {unknown}; this runtime implements {sorted(_LAYER_TYPES)}.")
        ratios = tuple(_LAYER_TYPES.get(item, 0) for item in types)
    if ratios is None:
        fields.problems.append("compress_ratios is missing (one ratio per layer: 0, 4 or 128).")
        return []
    if len(ratios) < num_layers:
        fields.problems.append(f"compress_ratios has {len(ratios)} entries but num_hidden_layers is {num_layers}.")
    unknown_ratios = sorted(set(ratios) - set(kinds))
    if unknown_ratios:
        fields.problems.append(f"compress_ratios holds {unknown_ratios}; this runtime implements 0, 4 and 128.")
    found = []
    for item in ratios[:num_layers]:
        ratio = real.get(item, 0)
        if not isinstance(ratio, int) or (ratio and PAGE_TOKENS % ratio):
            fields.problems.append(f"a compression rate is {ratio!r} but must divide {PAGE_TOKENS}.")
            ratio = item
        found.append((kinds.get(item, LayerKind.WINDOW), ratio))
    return found


def _ropes(fields: Fields) -> tuple[RopeSpec, RopeSpec]:
    """RoPE of window-only layers and of compressed layers."""
    theta = fields.real("rope_theta", default=10_000.0, minimum=1.0)
    compress_theta = fields.real("compress_rope_theta", default=160_000.0, minimum=1.0)
    nested = fields.section("rope_parameters")
    scaling = fields.section("rope_scaling")
    main, compress = nested.get("main"), nested.get("compress")
    if isinstance(main, dict) and isinstance(compress, dict):
        theta = float(main.get("rope_theta", theta))
        compress_theta = float(compress.get("rope_theta", compress_theta))
        scaling = compress
    elif nested and not scaling:
        scaling = nested
    if not scaling and fields.get("rope_factor") is not None:  # spelling of inference/config.json
        scaling = {"rope_type": "yarn", "factor": fields.get("rope_factor")}
    for name, alias in (
        ("original_seq_len", "original_max_position_embeddings"),
        ("beta_fast",) * 2,
        ("beta_slow",) * 2,
    ):
        value = fields.get(name)
        if value is not None and scaling:
            scaling = {alias: value, **scaling}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "yarn"):
        fields.problems.append(f"rope_scaling type is {kind!r}; this runtime implements 'default' and 'yarn'.")
    return RopeSpec(theta=theta), RopeSpec(theta=compress_theta, yarn=_yarn(scaling) if kind == "yarn" else None)


def _yarn(scaling: object) -> YarnSpec:
    fields = Fields(scaling if isinstance(scaling, dict) else {})
    return YarnSpec(
        factor=fields.real("factor", default=16.0, minimum=1.0),
        original_tokens=fields.integer("original_max_position_embeddings", default=65_536),
        beta_fast=fields.real("beta_fast", default=32.0),
        beta_slow=fields.real("beta_slow", default=1.0),
    )


def _quant(fields: Fields) -> QuantSpec:
    section = Fields(fields.section("quantization_config"))
    method = section.text("quant_method") or fields.text("quantization") or _inference_dtype(fields)
    expert = fields.text("expert_dtype") or section.text("expert_dtype")
    is_fp8 = method in ("fp8", "modelopt")
    if method not in ("", "fp8", "modelopt", "bf16"):
        fields.problems.append(f"quant_method is {method!r}; this runtime implements 'fp8' (and modelopt's NVFP4).")
    block = section.integers("weight_block_size")
    if is_fp8 and block not in (None, (128, 128)):
        fields.problems.append(f"weight_block_size is {block}; this runtime implements (128, 128).")
    stored = {"fp4": ExpertFormat.MXFP4, "fp8": ExpertFormat.FP8, "": ExpertFormat.MXFP4}
    if not is_fp8:
        stored = {"": ExpertFormat.BF16, "bf16": ExpertFormat.BF16}
    if expert not in stored:
        fields.problems.append(f"expert_dtype is {expert!r}; with quant_method {method!r} it may be {sorted(stored)}.")
    experts = stored.get(expert, ExpertFormat.BF16)
    is_nvfp4 = section.text("moe_quant_algo") == "NVFP4" or section.get("quantized_layers") is not None
    return QuantSpec(is_dense_fp8=is_fp8, experts=ExpertFormat.NVFP4 if is_nvfp4 else experts, draft_experts=experts)


def _inference_dtype(fields: Fields) -> str:
    """`dtype: fp8` is inference/config.json's spelling; transformers uses `dtype` for the tensor type."""
    return "fp8" if fields.get("dtype") == "fp8" else ""


def _draft(fields: Fields) -> DraftSpec:
    """DSpark is announced by its own keys, never by num_nextn_predict_layers, which stays 1."""
    num_mtp = fields.integer("num_nextn_predict_layers", default=0, minimum=0)
    num_stages = fields.integer("n_mtp_layers", default=num_mtp, minimum=0)
    targets = fields.integers("dspark_target_layer_ids")
    if targets is None:
        kind = DraftKind.MTP if num_stages else DraftKind.NONE
        return DraftSpec(kind=kind, num_stages=num_stages)
    for name in ("dspark_markov_head_type", "dspark_sample_from_anchor", "dspark_enable_confidence_head",
                 "dspark_confidence_head_with_markov"):  # fmt: skip
        fields.require(name, (True, "vanilla"))
    return DraftSpec(
        kind=DraftKind.DSPARK,
        num_stages=len(targets),
        block_tokens=fields.integer("dspark_block_size", default=5),
        noise_token_id=fields.integer("dspark_noise_token_id", minimum=0),
        target_layer_ids=targets,
        markov_rank=fields.integer("dspark_markov_rank", default=256),
    )


def _check_shapes(config: ModelConfig, problems: list[str]) -> None:
    if config.rope_dim % 2 or config.rope_dim > min(config.head_dim, config.index_head_dim):
        problems.append(f"qk_rope_head_dim is {config.rope_dim} but must be even and at most the head dims.")
    if config.num_heads % config.o_groups:
        problems.append(f"o_groups is {config.o_groups} but must divide num_attention_heads {config.num_heads}.")
    if config.num_active_experts > config.num_experts:
        problems.append(
            f"num_experts_per_tok {config.num_active_experts} exceeds n_routed_experts {config.num_experts}."
        )
    if config.window > PAGE_TOKENS:
        problems.append(f"sliding_window is {config.window}; this runtime implements up to {PAGE_TOKENS} tokens.")
    if not config.layers:
        problems.append("num_hidden_layers is 0: there is nothing to run.")
