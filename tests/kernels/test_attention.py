"""sparse_attention against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dsv4_kernels.errors import ShapeError
from dsv4_kernels.ops import OpTable


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def attend(query: np.ndarray, kv: np.ndarray, sink: np.ndarray, scale: float) -> np.ndarray:
    """One token: softmax over the rows and the sink, the sink without a value, in float64."""
    scores = query.astype(np.float64) @ kv.T.astype(np.float64) * scale
    top = np.maximum(scores.max(1, initial=-np.inf), sink)[:, None]
    weights = np.exp(scores - top)
    return weights @ kv / (weights.sum(1, keepdims=True) + np.exp(sink[:, None] - top))


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
    inputs = map(torch.from_numpy, (query, window, rows, entries, others, sink))
    got = ops.sparse_attention(*inputs, scale)
    for token in range(tokens):
        kv = np.concatenate([window[rows[token][rows[token] >= 0]], entries[others[token][others[token] >= 0]]])
        np.testing.assert_allclose(got[token].numpy(), attend(query[token], kv, sink, scale), atol=5e-6)


def test_layers_without_entries_attend_to_the_window_alone(ops: OpTable, rng: np.random.Generator):
    query, window, sink = normal(rng, 3, 4, 32), normal(rng, 20, 32), normal(rng, 4)
    rows = some_rows(rng, 3, 9, 20)
    got = ops.sparse_attention(*map(torch.from_numpy, (query, window, rows)), None, None, torch.from_numpy(sink), 0.2)
    for token in range(3):
        want = attend(query[token], window[rows[token][rows[token] >= 0]], sink, 0.2)
        np.testing.assert_allclose(got[token].numpy(), want, atol=5e-6)


def test_one_row_without_a_sink_returns_its_value(ops: OpTable, rng: np.random.Generator):
    query, window = torch.from_numpy(normal(rng, 1, 2, 16)), torch.from_numpy(normal(rng, 4, 16))
    sink = torch.full((2,), -float("inf"))
    got = ops.sparse_attention(query, window, torch.tensor([[2]]), None, None, sink, 0.25)
    assert torch.equal(got[0], window[2].expand(2, 16))


def test_a_sink_above_every_score_takes_almost_all_the_weight(ops: OpTable, rng: np.random.Generator):
    query, window = torch.from_numpy(normal(rng, 1, 2, 16)), torch.from_numpy(normal(rng, 4, 16))
    got = ops.sparse_attention(query, window, torch.tensor([[0, 1, 2, 3]]), None, None, torch.full((2,), 60.0), 0.25)
    assert got.abs().max() < 1e-20


@pytest.mark.parametrize("factor", [100.0, 1e18])
def test_scores_far_apart_stay_finite(factor: float, ops: OpTable, rng: np.random.Generator):
    query, window = factor * torch.from_numpy(normal(rng, 2, 3, 16)), torch.from_numpy(normal(rng, 6, 16))
    rows, sink = torch.arange(6).repeat(2, 1), torch.zeros(3)
    got = ops.sparse_attention(query, window, rows, None, None, sink, 0.25)
    for token in range(2):
        want = attend(query[token].numpy(), window.numpy(), sink.numpy(), 0.25)
        np.testing.assert_allclose(got[token].numpy(), want, atol=2e-4)


def test_a_token_without_rows_gives_zeros(ops: OpTable):
    got = ops.sparse_attention(
        torch.ones(1, 2, 16), torch.ones(4, 16), torch.full((1, 3), -1), None, None, torch.zeros(2), 0.25
    )
    assert torch.equal(got, torch.zeros(1, 2, 16))


def test_a_row_outside_the_window_cache_is_refused(cpu: OpTable):
    with pytest.raises(ShapeError, match="4 window rows"):
        cpu.sparse_attention(
            torch.ones(1, 2, 16), torch.ones(4, 16), torch.tensor([[4]]), None, None, torch.zeros(2), 1.0
        )


def test_a_row_outside_the_entry_cache_is_refused(cpu: OpTable):
    window = torch.ones(4, 16)
    with pytest.raises(ShapeError, match="2 entry rows"):
        cpu.sparse_attention(
            torch.ones(1, 2, 16), window, torch.tensor([[0]]), window[:2], torch.tensor([[2]]), torch.zeros(2), 1.0
        )
