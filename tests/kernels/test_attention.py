"""sparse_attention against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dsv4_kernels.cache import CacheRows, EntryRows, WindowRows
from dsv4_kernels.errors import ShapeError
from dsv4_kernels.ops import OpTable
from torch import Tensor


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def attend(query: np.ndarray, kv: np.ndarray, sink: np.ndarray, scale: float) -> np.ndarray:
    """One token: softmax over the rows and the sink, the sink without a value, in float64."""
    scores = query.astype(np.float64) @ kv.T.astype(np.float64) * scale
    top = np.maximum(scores.max(1, initial=-np.inf), sink)[:, None]
    weights = np.exp(scores - top)
    return weights @ kv / (weights.sum(1, keepdims=True) + np.exp(sink[:, None] - top))


def split(rows: np.ndarray, size: int) -> tuple[CacheRows, CacheRows]:
    """The first rows as a ring, the others as fresh ones."""
    return CacheRows.plain(torch.from_numpy(rows[:size])), CacheRows.plain(torch.from_numpy(rows[size:]))


def attend_window(ops: OpTable, query: Tensor, window: Tensor, rows: Tensor, sink: Tensor, scale: float) -> Tensor:
    """Attention to a ring alone."""
    held = WindowRows(CacheRows.plain(window), CacheRows.plain(window[:0]), rows)
    return ops.sparse_attention(query, held, None, sink, scale)


def some_rows(rng: np.random.Generator, tokens: int, width: int, cache_rows: int) -> np.ndarray:
    rows = rng.integers(0, cache_rows, (tokens, width))
    rows[rng.random((tokens, width)) < 0.3] = -1
    return rows


@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 1, 5), (3, 4, 64), (5, 7, 100), (2, 8, 512)])
def test_window_and_entries_share_one_softmax_with_the_sink(
    tokens: int, heads: int, width: int, ops: OpTable, rng: np.random.Generator
):
    query, sink = normal(rng, tokens, heads, width), normal(rng, heads)
    window, entries = normal(rng, 50, width), normal(rng, 30, width)
    rows, others = some_rows(rng, tokens, 37, 50), some_rows(rng, tokens, 21, 30)
    scale = width**-0.5
    ring, fresh = split(window, 20)
    numbers = torch.from_numpy(np.where(rows >= 20, 18 - rows, rows))  # -2 - (row - 20)
    chosen = EntryRows(CacheRows.plain(torch.from_numpy(entries)), torch.from_numpy(others))
    got = ops.sparse_attention(
        torch.from_numpy(query), WindowRows(ring, fresh, numbers), chosen, torch.from_numpy(sink), scale
    )
    for token in range(tokens):
        kv = np.concatenate([window[rows[token][rows[token] >= 0]], entries[others[token][others[token] >= 0]]])
        np.testing.assert_allclose(got[token].numpy(), attend(query[token], kv, sink, scale), atol=5e-6)


def test_layers_without_entries_attend_to_the_window_alone(ops: OpTable, rng: np.random.Generator):
    query, window, sink = normal(rng, 3, 4, 32), normal(rng, 20, 32), normal(rng, 4)
    rows = some_rows(rng, 3, 9, 20)
    got = attend_window(ops, *map(torch.from_numpy, (query, window, rows, sink)), 0.2)
    for token in range(3):
        want = attend(query[token], window[rows[token][rows[token] >= 0]], sink, 0.2)
        np.testing.assert_allclose(got[token].numpy(), want, atol=5e-6)


def test_one_row_without_a_sink_returns_its_value(ops: OpTable, rng: np.random.Generator):
    query, window = torch.from_numpy(normal(rng, 1, 2, 16)), torch.from_numpy(normal(rng, 4, 16))
    sink = torch.full((2,), -float("inf"))
    got = attend_window(ops, query, window, torch.tensor([[2]]), sink, 0.25)
    assert torch.equal(got[0], window[2].expand(2, 16))


def test_a_sink_above_every_score_takes_almost_all_the_weight(ops: OpTable, rng: np.random.Generator):
    query, window = torch.from_numpy(normal(rng, 1, 2, 16)), torch.from_numpy(normal(rng, 4, 16))
    got = attend_window(ops, query, window, torch.tensor([[0, 1, 2, 3]]), torch.full((2,), 60.0), 0.25)
    assert got.abs().max() < 1e-20


@pytest.mark.parametrize("factor", [100.0, 1e18])
def test_scores_far_apart_stay_finite(factor: float, ops: OpTable, rng: np.random.Generator):
    query, window = factor * torch.from_numpy(normal(rng, 2, 3, 16)), torch.from_numpy(normal(rng, 6, 16))
    rows, sink = torch.arange(6).repeat(2, 1), torch.zeros(3)
    got = attend_window(ops, query, window, rows, sink, 0.25)
    for token in range(2):
        want = attend(query[token].numpy(), window.numpy(), sink.numpy(), 0.25)
        np.testing.assert_allclose(got[token].numpy(), want, atol=2e-4)


def test_a_token_without_rows_gives_zeros(ops: OpTable):
    rows = torch.full((1, 3), -1)
    got = attend_window(ops, torch.ones(1, 2, 16), torch.ones(4, 16), rows, torch.zeros(2), 0.25)
    assert torch.equal(got, torch.zeros(1, 2, 16))


def window_of(row: int, width: int = 16) -> WindowRows:
    """One token that sees one of four ring rows and three fresh ones."""
    ring, fresh = CacheRows.plain(torch.ones(4, width)), CacheRows.plain(torch.ones(3, width))
    return WindowRows(ring, fresh, torch.tensor([[row]]))


@pytest.mark.parametrize("row", [4, -5])
def test_a_row_outside_the_window_is_refused(row: int, cpu: OpTable):
    with pytest.raises(ShapeError, match="4 window rows, 3 fresh ones"):
        cpu.sparse_attention(torch.ones(1, 2, 16), window_of(row), None, torch.zeros(2), 1.0)


def test_a_row_outside_the_entry_cache_is_refused(cpu: OpTable):
    entries = EntryRows(CacheRows.plain(torch.ones(2, 16)), torch.tensor([[2]]))
    with pytest.raises(ShapeError, match="2 entry rows"):
        cpu.sparse_attention(torch.ones(1, 2, 16), window_of(0), entries, torch.zeros(2), 1.0)


def test_a_cache_of_another_width_is_refused(cpu: OpTable):
    with pytest.raises(ShapeError, match="rows of width 8 but must have 16"):
        cpu.sparse_attention(torch.ones(1, 2, 16), window_of(0, width=8), None, torch.zeros(2), 1.0)
