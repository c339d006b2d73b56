"""Bytes of one cache entry in each format.

Source: shared facts `deepseek_v4.md` 2.11; no page padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dsv4_backend.config import CacheFormat, LayerKind, ModelConfig
from dsv4_backend.kv.layout import FOLDED_ROWS, FP32_BYTES, row_specs
from dsv4_backend.plan.hardware import Precision

INDEX_PRECISION = {CacheFormat.PACKED_FP4INDEX: Precision.FP4, CacheFormat.PACKED_FP8INDEX: Precision.FP8}


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
    entry, key = row_specs(config, cache_format)
    precision = INDEX_PRECISION.get(cache_format, Precision.BF16)
    return EntryBytes(entry=entry.row_bytes, index_key=key.row_bytes, index_precision=precision)


def state_bytes(config: ModelConfig, hca_state: HcaState) -> int:
    """Return the fp32 compressor state of one sequence, without drafts and without the window."""
    total = 0
    for layer in config.layers:
        if layer.kind is LayerKind.CSA:  # values and gates of two overlapping halves, main and indexer
            width = 2 * config.head_dim + 2 * config.index_head_dim
            total += 2 * (2 * layer.ratio) * width * FP32_BYTES
        elif layer.kind is LayerKind.HCA:
            rows = 2 * layer.ratio if hca_state is HcaState.RAW else FOLDED_ROWS
            total += rows * config.head_dim * FP32_BYTES
    return total
