"""Bytes of one cache entry in each format.

Source: shared facts `deepseek_v4.md` 2.11; no page padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dsv4_backend.config import LayerKind, ModelConfig
from dsv4_backend.plan.hardware import Precision

SCALE_GROUP = 64
INDEX_FP4_GROUP = 32
FP32_BYTES = 4
ONLINE_ROWS = 3  # running maximum, denominator, weighted sum


class CacheFormat(str, Enum):
    """PACKED_*: e4m3 channels, power-of-two scales and bf16 rotary channels, with FP4 or FP8 index keys."""

    PACKED_FP4INDEX = "packed-fp4index"
    PACKED_FP8INDEX = "packed-fp8index"
    BF16 = "bf16"


class HcaState(str, Enum):
    """How the entry that HCA is still filling is kept: RAW rows, or the ONLINE softmax over them."""

    RAW = "raw"
    ONLINE = "online"


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryBytes:
    """Bytes of one attention entry and one index key, and what index scores are computed in."""

    entry: int
    index_key: int
    index_precision: Precision


def entry_bytes(config: ModelConfig, cache_format: CacheFormat) -> EntryBytes:
    """Return the sizes of a format: 584 and 68 (FP4) or 132 (FP8) at the released widths."""
    if cache_format is CacheFormat.BF16:
        return EntryBytes(
            entry=2 * config.head_dim, index_key=2 * config.index_head_dim, index_precision=Precision.BF16
        )
    scales = -(-config.nope_dim // SCALE_GROUP)
    entry = config.nope_dim + -(-scales // 8) * 8 + 2 * config.rope_dim
    if cache_format is CacheFormat.PACKED_FP8INDEX:
        key = config.index_head_dim + FP32_BYTES
        return EntryBytes(entry=entry, index_key=key, index_precision=Precision.FP8)
    key = config.index_head_dim // 2 + -(-config.index_head_dim // INDEX_FP4_GROUP)
    return EntryBytes(entry=entry, index_key=key, index_precision=Precision.FP4)


def state_bytes(config: ModelConfig, hca_state: HcaState) -> int:
    """Return the fp32 compressor state of one sequence, without drafts and without the window."""
    total = 0
    for layer in config.layers:
        if layer.kind is LayerKind.CSA:  # values and gates of two overlapping halves, main and indexer
            width = 2 * config.head_dim + 2 * config.index_head_dim
            total += 2 * (2 * layer.ratio) * width * FP32_BYTES
        elif layer.kind is LayerKind.HCA:
            rows = 2 * layer.ratio if hca_state is HcaState.RAW else ONLINE_ROWS
            total += rows * config.head_dim * FP32_BYTES
    return total


def boundary_bytes(config: ModelConfig) -> int:
    """Return the fp32 state that is left at a multiple of 128 tokens: the earlier halves of CSA's last full block."""
    width = config.head_dim + config.index_head_dim
    return sum(2 * layer.ratio * width * FP32_BYTES for layer in config.layers if layer.kind is LayerKind.CSA)
