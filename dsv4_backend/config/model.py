"""The architecture of one checkpoint as frozen data. `config/read.py` fills it from a config.json.

Source: shared facts `deepseek_v4.md` section 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

PAGE_TOKENS = 128


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
    """The draft model that the config announces. Rule: each stage is a `layer`: window-only, with a learned router."""

    kind: DraftKind
    layer: LayerSpec
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
