"""Index scores and the radix choice in the interpreter: ties, zeros, every key format, the FP4 product."""

from __future__ import annotations

import pytest
import torch
from dsv4_kernels.cache import CacheRows
from dsv4_kernels.ops import OpTable
from dsv4_kernels.rows import RowFormat, RowSpec
from triton_rig import interpreted

FORMATS = (RowFormat.FP32, RowFormat.BF16, RowFormat.FP8, RowFormat.FP4)


def integers(*shape: int) -> torch.Tensor:
    """Small halves: every product and sum is exact, and ties are many."""
    return torch.randint(-3, 4, shape).float() / 2


@pytest.mark.parametrize("arch", ["sm_90", "sm_100a"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_best_entries_with_many_ties(format: RowFormat, arch: str, reference: OpTable):
    torch.manual_seed(1)
    spec = RowSpec(format=format, width=64)
    cache = reference.pack_rows(integers(150, 64), spec)
    query = reference.fp4_round_trip(integers(4, 5, 64))
    rows, visible = torch.randperm(150)[:140], torch.tensor([140, 0, 9, 77])
    arguments = (query, integers(4, 5), cache, rows, visible, 10)
    got, want = interpreted(arch).index_select(*arguments), reference.index_select(*arguments)
    if format is RowFormat.FP8 or format is RowFormat.FP4:  # rounded keys: scores are no longer exact
        assert _is_as_good(got, want, arguments)
    else:
        assert torch.equal(got, want)


def _is_as_good(got: torch.Tensor, want: torch.Tensor, arguments: tuple) -> bool:
    from dsv4_kernels.reference.cache import unpack_rows  # noqa: PLC0415

    query, weights, cache, rows, visible, _ = arguments
    keys = unpack_rows(cache, rows)
    for token, count in enumerate(visible.tolist()):
        scores = weights[token].double() @ torch.relu(query[token].double() @ keys.double().T)
        mine, theirs = got[token], want[token]
        if not torch.equal(mine >= 0, theirs >= 0) or (count and int(mine.max()) >= count):
            return False
        kept = mine[mine >= 0]
        if not torch.equal(kept, kept.unique()):
            return False
        gap = scores[kept].sort().values - scores[theirs[theirs >= 0]].sort().values
        if kept.numel() and float(gap.abs().max()) > 1e-4:
            return False
    return True


@pytest.mark.parametrize("count", [2100, pytest.param(5000, marks=pytest.mark.ci)])
def test_more_entries_than_a_block(count: int, reference: OpTable):
    torch.manual_seed(2)
    query, weights = integers(2, 2, 16), integers(2, 2)
    cache = CacheRows.plain(integers(count, 16))
    arguments = (query, weights, cache, torch.arange(count), torch.tensor([count, count - 7]), 600)
    assert torch.equal(interpreted().index_select(*arguments), reference.index_select(*arguments))


def test_all_equal_scores_take_the_first_entries(reference: OpTable):
    cache = CacheRows.plain(torch.zeros(50, 16))
    arguments = (torch.ones(1, 2, 16), torch.tensor([[-1.0, 1.0]]), cache, torch.arange(50), torch.tensor([50]), 7)
    assert interpreted().index_select(*arguments).tolist() == [list(range(7))]


@pytest.mark.parametrize("format", [RowFormat.FP32, RowFormat.FP4])
def test_each_token_may_have_pages_of_its_own(format: RowFormat, ops: OpTable):
    torch.manual_seed(4)
    page_rows, spec = 8, RowSpec(format=format, width=64)
    cache = ops.pack_rows(integers(160, 64), spec)
    query, weights = ops.fp4_round_trip(integers(3, 5, 64)), integers(3, 5)
    pages = torch.stack([torch.randperm(20)[:16] for _ in range(3)])
    visible = torch.tensor([128, 5, 90])
    alone = [
        ops.index_select(
            *(each[token : token + 1] for each in (query, weights)),
            cache,
            (pages[token][:, None] * page_rows + torch.arange(page_rows)).view(-1),
            visible[token : token + 1],
            12,
        )
        for token in range(3)
    ]
    arguments = (query, weights, cache, pages, visible, 12, page_rows)
    assert torch.equal(ops.index_select(*arguments), torch.cat(alone))
    for arch in ("sm_90", "sm_100a"):
        got = interpreted(arch).index_select(*arguments)
        if format is RowFormat.FP32:
            assert torch.equal(got, torch.cat(alone))
        assert torch.equal(got >= 0, torch.cat(alone) >= 0)
