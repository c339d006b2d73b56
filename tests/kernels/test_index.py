"""index_select against float64, with its tie, order and padding rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dsv4_kernels.cache import CacheRows
from dsv4_kernels.errors import ShapeError
from dsv4_kernels.ops import OpTable
from hypothesis import given, settings
from hypothesis import strategies as st

FOUR_KEYS = CacheRows.plain(torch.ones(4, 2))


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def scores_of(query: np.ndarray, weights: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """One token: sum over heads of w * relu(q . k), in float64."""
    products = np.maximum(query.astype(np.float64) @ keys.T.astype(np.float64), 0)
    return weights.astype(np.float64) @ products


def best(scores: np.ndarray, k: int) -> list[int]:
    chosen = sorted(np.argsort(-scores, kind="stable")[:k].tolist())
    return chosen + [-1] * (k - len(chosen))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), entries=st.integers(1, 300), k=st.integers(1, 40), heads=st.integers(1, 9))
def test_the_k_best_visible_entries_come_back_in_ascending_order(
    data: st.DataObject, entries: int, k: int, heads: int, ops: OpTable
):
    """Small integers, so that every score is exact and ties are common."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    tokens, width = 3, 5
    query, cache = rng.integers(-2, 3, (tokens, heads, width)), rng.integers(-2, 3, (entries + 7, width))
    weights, rows = rng.integers(-2, 3, (tokens, heads)), rng.permutation(entries + 7)[:entries]
    visible = rng.integers(0, entries + 1, tokens)
    want = [
        best(scores_of(query[t], weights[t], cache[rows[: visible[t]]]), k)
        if visible[t] > k
        else [*range(visible[t])] + [-1] * (k - visible[t])
        for t in range(tokens)
    ]
    floats = [torch.from_numpy(a.astype(np.float32)) for a in (query, weights, cache)]
    keys = CacheRows.plain(floats[2])
    got = ops.index_select(*floats[:2], keys, torch.from_numpy(rows), torch.from_numpy(visible), k)
    assert got.tolist() == want


def test_scores_at_the_models_size_choose_as_float64_does(ops: OpTable, rng: np.random.Generator):
    """Near ties may fall either way, so the worst entry that was kept must be about as good as the best left out."""
    query, weights, keys = normal(rng, 4, 64, 128), normal(rng, 4, 64), normal(rng, 700, 128)
    visible = torch.tensor([700, 600, 65, 64])
    cache = CacheRows.plain(torch.from_numpy(keys))
    got = ops.index_select(*map(torch.from_numpy, (query, weights)), cache, torch.arange(700), visible, 64)
    for token, count in enumerate(visible.tolist()):
        scores = scores_of(query[token], weights[token], keys[:count])
        kept = np.zeros(count, dtype=bool)
        kept[got[token].numpy()] = True
        assert kept.sum() == 64
        assert count == 64 or scores[kept].min() >= scores[~kept].max() - 1e-3


def test_equal_scores_keep_the_oldest_entries(ops: OpTable):
    query, weights, keys = torch.zeros(1, 2, 4), torch.ones(1, 2), CacheRows.plain(torch.zeros(10, 4))
    assert ops.index_select(query, weights, keys, torch.arange(10), torch.tensor([10]), 3).tolist() == [[0, 1, 2]]


def test_entries_are_numbered_by_the_sequence_not_by_the_cache(ops: OpTable):
    cache = torch.zeros(6, 2)
    cache[4] = 1.0  # entry 1 of this sequence
    rows = torch.tensor([2, 4, 0])
    got = ops.index_select(torch.ones(1, 1, 2), torch.ones(1, 1), CacheRows.plain(cache), rows, torch.tensor([3]), 1)
    assert got.tolist() == [[1]]


def test_a_sequence_without_entries_selects_none(ops: OpTable):
    empty = torch.empty(0, dtype=torch.int64)
    cache = CacheRows.plain(torch.ones(4, 2))
    got = ops.index_select(torch.ones(2, 1, 2), torch.ones(2, 1), cache, empty, torch.zeros(2).long(), 3)
    assert got.tolist() == [[-1, -1, -1]] * 2


def test_a_score_that_is_no_number_is_the_worst(cpu: OpTable):
    cache = torch.ones(4, 2)
    cache[0] = float("nan")
    keys = CacheRows.plain(cache)
    got = cpu.index_select(torch.ones(1, 1, 2), torch.ones(1, 1), keys, torch.arange(4), torch.tensor([4]), 3)
    assert got.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("rows", [[0, 4], [0, -1]])
def test_a_row_outside_the_cache_is_refused(rows: list[int], cpu: OpTable):
    with pytest.raises(ShapeError, match="cache of 4"):
        cpu.index_select(torch.ones(1, 1, 2), torch.ones(1, 1), FOUR_KEYS, torch.tensor(rows), torch.ones(1).long(), 1)


def test_more_visible_entries_than_rows_is_refused(cpu: OpTable):
    with pytest.raises(ShapeError, match="more than 2 entries"):
        cpu.index_select(torch.ones(1, 1, 2), torch.ones(1, 1), FOUR_KEYS, torch.arange(2), torch.tensor([3]), 1)
