"""mHC operators against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dsv4_kernels.errors import ShapeError
from dsv4_kernels.ops import OpTable

EPS = 1e-6


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def projected(streams: np.ndarray, fn: np.ndarray) -> np.ndarray:
    flat = streams.reshape(len(streams), -1).astype(np.float64)
    return flat @ fn.T.astype(np.float64) / np.sqrt((flat**2).mean(1, keepdims=True) + EPS)


def sinkhorn(c: np.ndarray, iterations: int) -> np.ndarray:
    c = np.exp(c - c.max(2, keepdims=True))
    c = c / c.sum(2, keepdims=True) + EPS
    c = c / (c.sum(1, keepdims=True) + EPS)
    for _ in range(iterations - 1):
        c = c / (c.sum(2, keepdims=True) + EPS)
        c = c / (c.sum(1, keepdims=True) + EPS)
    return c


@pytest.mark.parametrize(("tokens", "n", "width"), [(1, 4, 16), (5, 4, 100), (35, 4, 64), (3, 2, 24)])
@pytest.mark.parametrize("iterations", [1, 20])
def test_maps_follow_the_published_order_of_steps(
    tokens: int, n: int, width: int, iterations: int, ops: OpTable, rng: np.random.Generator
):
    streams, fn = normal(rng, tokens, n, width), normal(rng, (2 + n) * n, n * width) / np.sqrt(n * width)
    fn = fn.astype(np.float32)
    base, scale = normal(rng, (2 + n) * n), normal(rng, 3)
    z = projected(streams, fn)
    comb = (z[:, 2 * n :] * scale[2] + base[2 * n :]).reshape(tokens, n, n)
    want = (
        sigmoid(z[:, :n] * scale[0] + base[:n]) + EPS,
        2 * sigmoid(z[:, n : 2 * n] * scale[1] + base[n : 2 * n]),
        sinkhorn(comb, iterations),
    )
    got = ops.hyper_maps(*map(torch.from_numpy, (streams, fn, base, scale)), EPS, EPS, iterations)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one.numpy(), other, atol=5e-6)


def test_columns_of_comb_sum_to_one(ops: OpTable, rng: np.random.Generator):
    inputs = (normal(rng, 6, 4, 32), normal(rng, 24, 128), normal(rng, 24), normal(rng, 3))
    _, _, comb = ops.hyper_maps(*map(torch.from_numpy, inputs), EPS, EPS, 20)
    torch.testing.assert_close(comb.sum(dim=1), torch.ones(6, 4), atol=2e-6, rtol=0)


def test_mix_sums_over_the_first_index_of_comb(ops: OpTable):
    comb = torch.zeros(1, 4, 4)
    comb[0, 1, 3] = 1.0  # stream 1 flows into stream 3
    streams = torch.arange(4.0).view(1, 4, 1).expand(1, 4, 8).contiguous()
    mixed = ops.hyper_mix(streams, torch.zeros(1, 8), torch.zeros(1, 4), comb)
    assert mixed[0, :, 0].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("width", [8, 100])
def test_mix_and_collapse_are_sums_in_float64(width: int, ops: OpTable, rng: np.random.Generator):
    streams, y = normal(rng, 5, 4, width), normal(rng, 5, width)
    post, comb = normal(rng, 5, 4), normal(rng, 5, 4, 4)
    mixed = post[:, :, None] * y[:, None].astype(np.float64) + np.einsum(
        "tjk,tjd->tkd", comb, streams, dtype=np.float64
    )
    got = ops.hyper_mix(*map(torch.from_numpy, (streams, y, post, comb)))
    np.testing.assert_allclose(got.numpy(), mixed, atol=3e-6)
    collapsed = np.einsum("tn,tnd->td", post, streams, dtype=np.float64)
    np.testing.assert_allclose(
        ops.hyper_collapse(torch.from_numpy(streams), torch.from_numpy(post)).numpy(), collapsed, atol=3e-6
    )


def test_head_mixes_the_streams_by_their_own_gates(ops: OpTable, rng: np.random.Generator):
    streams, fn = normal(rng, 7, 4, 48), (normal(rng, 4, 192) / 14).astype(np.float32)
    base, scale = normal(rng, 4), normal(rng, 1)
    gates = sigmoid(projected(streams, fn) * scale + base) + EPS
    got = ops.hyper_head(*map(torch.from_numpy, (streams, fn, base, scale)), EPS, EPS)
    np.testing.assert_allclose(got.numpy(), np.einsum("tn,tnd->td", gates, streams), atol=5e-6)


def test_maps_of_another_size_are_refused(cpu: OpTable):
    with pytest.raises(ShapeError, match=r"fn is \[20, 32\] but must be \[24, 32\]"):
        cpu.hyper_maps(torch.empty(1, 4, 8), torch.empty(20, 32), torch.empty(24), torch.empty(3), EPS, EPS, 20)
