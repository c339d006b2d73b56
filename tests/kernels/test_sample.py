"""The choice of a token: both implementations choose alike, and keep what the filters say."""

from __future__ import annotations

from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dsv4_kernels.errors import ShapeError
from dsv4_kernels.ops import OpTable
from dsv4_kernels.sampling import SampleRows, pack_bits, unpack_bits
from dsv4_kernels.triton_lang.arch import arch_named
from dsv4_kernels.triton_lang.launch import Device, execute
from dsv4_kernels.triton_lang.sample import sample_tokens
from hypothesis import given
from hypothesis import strategies as st

Row = tuple[float, int, float, float, float]
settings_rows = st.tuples(
    st.sampled_from([0.0, 0.2, 1.0, 3.0]),
    st.sampled_from([0, 1, 5, 700, 5000]),
    st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.0]),
    st.sampled_from([0.0, 0.05, 1.0]),
    st.floats(0.0, 1.0, exclude_max=True),
)


@cache
def on_gpu() -> SimpleNamespace:
    """What a GPU's table does, here on the CPU."""
    device = Device(arch_named("sm_90"), execute)
    return SimpleNamespace(sample_tokens=partial(sample_tokens, device))


def chosen(
    ops: OpTable | SimpleNamespace, scores: torch.Tensor, *rows: Row, allowed: torch.Tensor | None = None
) -> list[int]:
    return ops.sample_tokens(scores, SampleRows.of(list(rows), allowed)).tolist()  # type: ignore[no-any-return]


@given(
    rows=st.lists(settings_rows, min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
    width=st.sampled_from([1, 2, 33, 1000]),
    levels=st.sampled_from([3, 10**6]),
)
def test_all_choose_alike(
    cpu: OpTable, reference: OpTable, rows: list[Row], seed: int, width: int, levels: int
) -> None:
    """Few levels make many ties."""
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(0, levels, (len(rows), width)) / levels * 8 - 4).float()
    scores[torch.from_numpy(rng.random((len(rows), width)) < 0.2)] = -torch.inf
    assert chosen(cpu, scores, *rows) == chosen(reference, scores, *rows) == chosen(on_gpu(), scores, *rows)


@given(
    rows=st.lists(settings_rows, min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
    width=st.sampled_from([1, 31, 32, 64, 1000]),
    share=st.sampled_from([0.0, 0.02, 0.7, 1.0]),
)
def test_what_is_not_allowed_counts_as_minus_infinity(
    cpu: OpTable, reference: OpTable, rows: list[Row], seed: int, width: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.normal(0, 3, (len(rows), width))).float()
    allowed = torch.from_numpy(rng.random((len(rows), width)) < share)
    words = torch.stack([pack_bits(row) for row in allowed])
    want = chosen(reference, scores.masked_fill(~allowed, -torch.inf), *rows)
    for ops in (cpu, reference, on_gpu()):
        assert chosen(ops, scores, *rows, allowed=words) == want


@given(allowed=st.lists(st.booleans(), min_size=1, max_size=100))
def test_packed_bits_come_back(allowed: list[bool]) -> None:
    assert unpack_bits(pack_bits(torch.tensor(allowed)), len(allowed)).tolist() == allowed


def test_a_mask_of_another_form_is_refused(cpu: OpTable) -> None:
    with pytest.raises(ShapeError, match=r"allowed is torch.int32 \(1, 2\) but must be int32 \(1, 1\)"):
        chosen(cpu, torch.zeros(1, 3), (1.0, 0, 1.0, 0.0, 0.0), allowed=torch.zeros(1, 2, dtype=torch.int32))


def test_greedy_takes_the_best_and_of_equal_ones_the_first(ops: OpTable) -> None:
    scores = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    assert chosen(ops, scores, (0.0, 0, 1.0, 0.0, 0.9)) == [1]


def test_nothing_left_is_told(ops: OpTable) -> None:
    scores = torch.full((2, 3), -torch.inf)
    scores[1, 2] = -5.0
    assert chosen(ops, scores, (1.0, 0, 1.0, 0.0, 0.3), (1.0, 2, 0.5, 0.0, 0.999)) == [-1, 2]


def test_an_infinite_score_is_taken(ops: OpTable) -> None:
    assert chosen(ops, torch.tensor([[0.0, torch.inf, 3.0]]), (1.0, 0, 0.9, 0.0, 0.0)) == [1]


@pytest.mark.parametrize(
    ("row", "kept"),
    [((1.0, 3, 1.0, 0.0), {2, 5, 7}), ((1.0, 0, 0.5, 0.0), {5, 7}), ((1.0, 0, 1.0, 0.5), {2, 5, 7}),
     ((1.0, 1, 1.0, 0.0), {5}), ((1.0, 0, 0.0, 0.0), {5})],
)  # fmt: skip
def test_filters_keep_the_best(ops: OpTable, row: tuple[float, int, float, float], kept: set[int]) -> None:
    weights = torch.tensor([0.02, 0.03, 0.2, 0.03, 0.02, 0.3, 0.1, 0.3]).double()
    scores = weights.log().float()[None].expand(400, -1)
    rows = [(*row, number / 400) for number in range(400)]
    assert set(chosen(ops, scores, *rows)) == kept


def test_top_p_reaches_beyond_the_tokens_sorted_first(ops: OpTable) -> None:
    rows = [(1.0, 0, 0.75, 0.0, number / 2048) for number in range(2048)]
    assert set(chosen(ops, torch.zeros(1, 1024).expand(2048, -1), *rows)) == set(range(768))


def test_rows_and_settings_must_be_as_many(cpu: OpTable) -> None:
    with pytest.raises(ShapeError, match="scores have 2 rows but the settings 1"):
        chosen(cpu, torch.zeros(2, 3), (1.0, 0, 1.0, 0.0, 0.0))
