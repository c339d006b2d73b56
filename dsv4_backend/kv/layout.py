"""The caches of a model as data: what a page and a state hold, and how many bytes they take.

Two kinds, each with places of one size:
    block   one page of 128 tokens of one sequence: CSA entries, index keys and HCA entries of all layers; only grows
    state   what a sequence carries besides, whatever its length: window rings, compressor rings, folded HCA blocks

A row of a page stands at `page * rows_per_page + offset` in its layer's tensor, a row of a state's ring at
`state * ring_rows + position mod ring_rows`. Rings hold max_drafts positions more than the next token needs, so that
taking back that many tokens moves a length and nothing else.
Source: ARCHITECTURE.md, shared facts `deepseek_v4.md` 2.11.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_kernels.rows import RowFormat, RowSpec

from dsv4_backend.config import CacheFormat, LayerKind, ModelConfig
from dsv4_backend.config.model import PAGE_TOKENS

BLOCK, STATE = "block", "state"
KINDS = (BLOCK, STATE)
CSA, INDEX, HCA = "csa", "index", "hca"
FP32_BYTES = 4
FOLDED_ROWS = 3  # maximum, denominator, weighted sum


@dataclass(frozen=True, slots=True, kw_only=True)
class EntrySpec:
    """Append-only entries of some layers. Rule: name is CSA, INDEX or HCA; ratio is in tokens per entry."""

    name: str
    layer_ids: tuple[int, ...]
    ratio: int
    row: RowSpec

    @property
    def rows_per_page(self) -> int:
        """Entries of a page in one layer."""
        return PAGE_TOKENS // self.ratio

    @property
    def page_bytes(self) -> int:
        """Bytes of a page over all layers."""
        return len(self.layer_ids) * self.rows_per_page * self.row.row_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSpec:
    """The latest keys of every layer."""

    num_layers: int
    ring_rows: int
    row: RowSpec

    @property
    def state_bytes(self) -> int:
        """Bytes of one sequence over all layers."""
        return self.num_layers * self.ring_rows * self.row.row_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RingSpec:
    """The latest compressor inputs of one CSA layer, or of its indexer: fp32 values and gates [ring_rows, width]."""

    layer_id: int
    is_indexer: bool
    ratio: int
    ring_rows: int
    width: int

    @property
    def state_bytes(self) -> int:
        """Bytes of one sequence."""
        return 2 * self.ring_rows * self.width * FP32_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldSpec:
    """The block that an HCA layer is filling: folded up to the tokens that are certain, ring_rows raw rows after them.

    Rule: values and gates of the raw rows are fp32, as the folded maximum, denominator and weighted sum are.
    """

    layer_id: int
    ratio: int
    ring_rows: int
    width: int

    @property
    def state_bytes(self) -> int:
        """Bytes of one sequence."""
        return (FOLDED_ROWS + 2 * self.ring_rows) * self.width * FP32_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayout:
    """Everything that is cached of one model. Rule: entry kinds that no layer uses are absent."""

    window_tokens: int
    max_drafts: int
    window: WindowSpec
    entries: tuple[EntrySpec, ...] = ()
    rings: tuple[RingSpec, ...] = ()
    folds: tuple[FoldSpec, ...] = ()

    def entry(self, name: str) -> EntrySpec | None:
        """Return the entry kind of that name, or None where no layer uses it."""
        return next((spec for spec in self.entries if spec.name == name), None)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page of the `block` kind."""
        return sum(spec.page_bytes for spec in self.entries)

    @property
    def state_bytes(self) -> int:
        """Bytes of one place of the `state` kind, which is also what a snapshot takes."""
        rings = sum(spec.state_bytes for spec in self.rings) + sum(spec.state_bytes for spec in self.folds)
        return self.window.state_bytes + rings

    def place_bytes(self, kind: str) -> int:
        """Bytes of one place of a kind."""
        return self.page_bytes if kind == BLOCK else self.state_bytes


def make_layout(
    config: ModelConfig,
    cache_format: CacheFormat = CacheFormat.FP32,
    max_drafts: int = 0,
    num_draft_layers: int = 0,
) -> CacheLayout:
    """Derive the caches of a model.

    max_drafts: tokens of a step that may be taken back. num_draft_layers: stages of a draft model, whose windows stand
    behind those of the backbone.
    """
    entry, key = row_specs(config, cache_format)
    rings = tuple(ring for index in config.layer_ids(LayerKind.CSA) for ring in _rings(config, index, max_drafts))
    folds = tuple(
        FoldSpec(layer_id=index, ratio=config.layers[index].ratio, ring_rows=max_drafts, width=config.head_dim)
        for index in config.layer_ids(LayerKind.HCA)
    )
    return CacheLayout(
        window_tokens=config.window,
        max_drafts=max_drafts,
        window=WindowSpec(
            num_layers=config.num_layers + num_draft_layers, ring_rows=config.window + max_drafts, row=entry
        ),
        entries=tuple(_entries(config, entry, key)),
        rings=rings,
        folds=folds,
    )


def row_specs(config: ModelConfig, cache_format: CacheFormat) -> tuple[RowSpec, RowSpec]:
    """Return how an attention entry and an index key are stored."""
    entry, key = {
        CacheFormat.FP32: (RowFormat.FP32, RowFormat.FP32),
        CacheFormat.BF16: (RowFormat.BF16, RowFormat.BF16),
        CacheFormat.PACKED_FP8INDEX: (RowFormat.PACKED, RowFormat.FP8),
        CacheFormat.PACKED_FP4INDEX: (RowFormat.PACKED, RowFormat.FP4),
    }[cache_format]
    return (
        RowSpec(format=entry, width=config.head_dim, rope_dim=config.rope_dim),
        RowSpec(format=key, width=config.index_head_dim),
    )


def _entries(config: ModelConfig, entry: RowSpec, key: RowSpec) -> list[EntrySpec]:
    found = []
    for name, kind, row in ((CSA, LayerKind.CSA, entry), (INDEX, LayerKind.CSA, key), (HCA, LayerKind.HCA, entry)):
        layer_ids = config.layer_ids(kind)
        if layer_ids:
            ratio = config.layers[layer_ids[0]].ratio
            found.append(EntrySpec(name=name, layer_ids=layer_ids, ratio=ratio, row=row))
    return found


def _rings(config: ModelConfig, layer_id: int, max_drafts: int) -> list[RingSpec]:
    """Two overlapping halves: the previous block's and the current one's."""
    ratio = config.layers[layer_id].ratio
    rows, widths = 2 * ratio + max_drafts, ((False, 2 * config.head_dim), (True, 2 * config.index_head_dim))
    return [
        RingSpec(layer_id=layer_id, is_indexer=is_indexer, ratio=ratio, ring_rows=rows, width=width)
        for is_indexer, width in widths
    ]
