"""Sparse attention in the interpreter: split over the rows and not, every row format, no rows, -1 among them."""

from __future__ import annotations

import pytest
import torch
from dsv4_kernels.cache import CacheRows, EntryRows, WindowRows
from dsv4_kernels.errors import ShapeError
from dsv4_kernels.ops import OpTable
from dsv4_kernels.rows import RowFormat, RowSpec
from dsv4_kernels.triton_lang import attention
from triton_rig import close, each_arch, interpreted

TABLE = interpreted()
PACKED = RowSpec(format=RowFormat.PACKED, width=128, rope_dim=32)
RELEASED = RowSpec(format=RowFormat.PACKED, width=512, rope_dim=64)  # a quarter holds two scales, or codes and bf16
FP32 = RowSpec(format=RowFormat.FP32, width=100)


def some_rows(tokens: int, width: int, count: int, num_fresh: int = 0) -> torch.Tensor:
    rows = torch.randint(0, count, (tokens, width))
    fresh = torch.rand(tokens, width) < 0.2
    rows = torch.where(fresh & (num_fresh > 0), -2 - rows % max(1, num_fresh), rows)
    return torch.where(torch.rand(tokens, width) < 0.3, -1, rows)


def case(reference: OpTable, spec: RowSpec, tokens: int, heads: int, entries: int):
    torch.manual_seed(tokens + heads)
    ring, fresh, cache = (reference.pack_rows(torch.randn(count, spec.width), spec) for count in (40, 9, 30))
    window = WindowRows(ring, fresh, some_rows(tokens, 37, 40, 9))
    chosen = EntryRows(cache, some_rows(tokens, entries, 30)) if entries else None
    return torch.randn(tokens, heads, spec.width), window, chosen, torch.randn(heads), spec.width**-0.5


@pytest.mark.parametrize(
    ("spec", "tokens", "heads", "entries", "tolerance"),
    [
        (FP32, 2, 5, 21, 2e-6),
        (FP32, 1, 17, 0, 2e-6),
        (PACKED, 2, 3, 70, 1e-2),
        (RELEASED, 1, 3, 20, 1e-2),
        pytest.param(PACKED, 130, 2, 0, 1e-2, marks=pytest.mark.ci),  # enough programs: one split
        (RowSpec(format=RowFormat.BF16, width=64), 1, 4, 150, 1e-2),
        (RowSpec(format=RowFormat.FP8, width=64), 1, 4, 10, 1e-2),
        (RowSpec(format=RowFormat.FP4, width=64), 1, 4, 10, 1e-2),
    ],
)
def test_every_format_split_and_whole(spec, tokens, heads, entries, tolerance, reference: OpTable):
    arguments = case(reference, spec, tokens, heads, entries)
    close(TABLE.sparse_attention(*arguments), reference.sparse_attention(*arguments), tolerance)


@each_arch  # sm_100a has rows on the left of the products, the others heads
@pytest.mark.parametrize("splits", [1, 3])
def test_the_number_of_splits_does_not_matter(
    splits: int, arch: str, reference: OpTable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention, "MAX_SPLITS", splits)
    arguments = case(reference, FP32, 2, 3, 40)
    close(interpreted(arch).sparse_attention(*arguments), reference.sparse_attention(*arguments), 2e-6)


@pytest.mark.parametrize("sink", [0.0, 60.0, -float("inf")])
def test_a_token_without_rows_gives_zeros(sink: float):
    cache = CacheRows.plain(torch.ones(4, 64))
    window = WindowRows(cache, cache, torch.full((1, 70), -1))
    got = TABLE.sparse_attention(torch.ones(1, 2, 64), window, None, torch.full((2,), sink), 0.25)
    assert torch.equal(got, torch.zeros(1, 2, 64))


@pytest.mark.parametrize("factor", [100.0, 1e18])
def test_scores_far_apart_stay_finite(factor: float, reference: OpTable):
    query, window, chosen, sink, scale = case(reference, FP32, 2, 3, 10)
    got = TABLE.sparse_attention(factor * query, window, chosen, sink, scale)
    close(got, reference.sparse_attention(factor * query, window, chosen, sink, scale), 2e-5)


def test_rows_of_two_layouts_in_one_window_are_refused(reference: OpTable):
    ring, fresh = CacheRows.allocate(PACKED, 4), CacheRows.plain(torch.ones(4, 128))
    with pytest.raises(ShapeError, match="store them alike"):
        TABLE.sparse_attention(
            torch.ones(1, 2, 128), WindowRows(ring, fresh, torch.zeros(1, 1).long()), None, torch.zeros(2), 1.0
        )


@each_arch
def test_packed_rows_on_every_architecture(arch: str, reference: OpTable):
    arguments = case(reference, PACKED, 1, 3, 40)
    close(interpreted(arch).sparse_attention(*arguments), reference.sparse_attention(*arguments), 1e-2)


def test_a_cache_that_begins_between_rows_is_refused(reference: OpTable):
    query, window, chosen, sink, scale = case(reference, PACKED, 1, 3, 40)
    moved = torch.empty(window.ring.data.numel() + 1, dtype=torch.uint8)[1:].view(window.ring.data.shape)
    window = WindowRows(CacheRows(moved, PACKED), window.fresh, window.rows)
    with pytest.raises(ShapeError, match="multiple of 8 bytes"):
        TABLE.sparse_attention(query, window, chosen, sink, scale)
