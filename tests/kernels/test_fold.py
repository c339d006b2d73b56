"""compress_fold against float64 pooling, however the rows are cut into runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dsv4_kernels.ops import OpTable
from dsv4_kernels.tensors import FoldRuns


def runs(*parts: tuple[int, range, int]) -> FoldRuns:
    """Runs as (state to begin with, rows, state to end in), -1 for none."""
    lengths = [len(rows) for _, rows, _ in parts]
    return FoldRuns(
        begins=torch.tensor([begin for begin, _, _ in parts]),
        offsets=torch.tensor([0, *np.cumsum(lengths)]),
        sources=torch.tensor([row for _, rows, _ in parts for row in rows], dtype=torch.int64),
        ends=torch.tensor([end for _, _, end in parts]),
    )


def pooled(values: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    weight = torch.softmax(gates.double(), dim=0)
    return (weight * values.double()).sum(0)


@pytest.mark.parametrize(("rows", "width", "spread"), [(1, 5, 1.0), (128, 512, 5.0), (37, 33, 1000.0), (8, 40, 1e30)])
def test_one_run_pools_its_rows(rows: int, width: int, spread: float, ops: OpTable):
    torch.manual_seed(rows)
    values, gates = torch.randn(rows, width), torch.randn(rows, width) * spread
    got = ops.compress_fold(values, gates, torch.zeros(0, 3, width), runs((-1, range(rows), -1)))
    torch.testing.assert_close(got[0].double(), pooled(values, gates), rtol=0, atol=2e-6)


@pytest.mark.parametrize("cut", [1, 2, 63, 64, 127])
def test_bits_do_not_depend_on_where_a_block_is_cut(cut: int, ops: OpTable):
    torch.manual_seed(cut)
    values, gates, states = torch.randn(128, 70), torch.randn(128, 70), torch.randn(4, 3, 70)
    whole = ops.compress_fold(values, gates, states.clone(), runs((-1, range(128), -1)))
    first = ops.compress_fold(values, gates, states, runs((-1, range(cut), 2)))
    assert first.shape == (0, 70)
    assert torch.equal(ops.compress_fold(values, gates, states, runs((2, range(cut, 128), -1))), whole)


def test_a_run_reads_what_an_earlier_one_has_stored(ops: OpTable):
    torch.manual_seed(1)
    values, gates, states = torch.randn(9, 20), torch.randn(9, 20), torch.zeros(2, 3, 20)
    got = ops.compress_fold(values, gates, states, runs((-1, range(4), 1), (1, range(4, 9), -1), (1, range(5, 6), -1)))
    torch.testing.assert_close(got[0].double(), pooled(values, gates), rtol=0, atol=2e-6)
    rows = [0, 1, 2, 3, 5]
    torch.testing.assert_close(got[1].double(), pooled(values[rows], gates[rows]), rtol=0, atol=2e-6)


def test_states_that_no_run_names_stay_as_they_were(ops: OpTable):
    states = torch.randn(3, 3, 20)
    before = states.clone()
    ops.compress_fold(torch.randn(2, 20), torch.randn(2, 20), states, runs((-1, range(2), 1)))
    assert torch.equal(states[[0, 2]], before[[0, 2]]) and not torch.equal(states[1], before[1])
