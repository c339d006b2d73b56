"""Cache kinds of a model as data: how many rows a page has, which layers it spans, how many bytes it takes.

A page stands for one block of 128 tokens of one sequence, over all layers of its kind. The row of an entry inside the
layer tensor is `page * rows_per_page + offset`. Source: ARCHITECTURE.md, shared facts `deepseek_v4.md` 2.11.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv4_backend.config import LayerKind, ModelConfig
from dsv4_backend.config.model import PAGE_TOKENS

WINDOW, CSA, INDEX, HCA, STATE = "window", "csa", "index", "hca", "state"


@dataclass(frozen=True, slots=True, kw_only=True)
class KindSpec:
    """One kind of cache.

    Units: width in elements per row and layer; page_bytes over all layers.
    Rule:  a `is_fixed` kind has one page per sequence whatever its length (compressor rings).
           a `is_windowed` kind gives blocks back once they lie behind the window.
    """

    name: str
    layer_ids: tuple[int, ...]
    rows_per_page: int
    width: int
    element_bytes: int
    is_fixed: bool = False
    is_windowed: bool = False

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers of the kind."""
        return len(self.layer_ids) * self.rows_per_page * self.width * self.element_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RingSpec:
    """The compressor ring of one layer inside the `state` kind.

    Shapes: values and gates are each [pages * ring_rows, width] fp32.
    Rule:   the row of position p is p mod ring_rows.
    """

    layer_id: int
    is_indexer: bool
    ratio: int
    ring_rows: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayout:
    """All kinds of one model; kinds that no layer uses are absent."""

    kinds: tuple[KindSpec, ...]
    rings: tuple[RingSpec, ...]
    window: int

    def kind(self, name: str) -> KindSpec | None:
        """Return the kind of that name, or None where no layer uses it."""
        return next((spec for spec in self.kinds if spec.name == name), None)


def make_layout(config: ModelConfig, element_bytes: int = 4) -> CacheLayout:
    """Derive the cache kinds of a model. element_bytes: 4 = fp32 entries (the CPU's format today)."""
    rings = tuple(_rings(config))
    specs = [
        KindSpec(
            name=WINDOW,
            layer_ids=tuple(range(config.num_layers)),
            rows_per_page=PAGE_TOKENS,
            width=config.head_dim,
            element_bytes=element_bytes,
            is_windowed=True,
        )
    ]
    for name, kind, width in (
        (CSA, LayerKind.CSA, config.head_dim),
        (INDEX, LayerKind.CSA, config.index_head_dim),
        (HCA, LayerKind.HCA, config.head_dim),
    ):
        layer_ids = config.layer_ids(kind)
        if layer_ids:
            rows = PAGE_TOKENS // config.layers[layer_ids[0]].ratio
            specs.append(
                KindSpec(name=name, layer_ids=layer_ids, rows_per_page=rows, width=width, element_bytes=element_bytes)
            )
    if rings:
        floats = sum(2 * ring.ring_rows * ring.width for ring in rings)
        specs.append(
            KindSpec(name=STATE, layer_ids=(0,), rows_per_page=1, width=floats, element_bytes=4, is_fixed=True)
        )
    return CacheLayout(kinds=tuple(specs), rings=rings, window=config.window)


def _rings(config: ModelConfig) -> list[RingSpec]:
    rings = []
    for layer_id, layer in enumerate(config.layers):
        if layer.kind is LayerKind.CSA:  # two overlapping halves: the previous block's and the current one's
            rows, widths = 2 * layer.ratio, [(False, 2 * config.head_dim), (True, 2 * config.index_head_dim)]
        elif layer.kind is LayerKind.HCA:
            rows, widths = layer.ratio, [(False, config.head_dim)]
        else:
            continue
        for is_indexer, width in widths:
            rings.append(
                RingSpec(layer_id=layer_id, is_indexer=is_indexer, ratio=layer.ratio, ring_rows=rows, width=width)
            )
    return rings
