"""The bits of a token's row depend on that token alone: not on the batch, its place in it, padding, or threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from dsv4_kernels.cache import CacheRows, EntryRows, WindowRows
from dsv4_kernels.dispatch import OPERATORS
from dsv4_kernels.ops import OpTable
from dsv4_kernels.prepared import ExpertWeights, LinearWeight
from dsv4_kernels.rows import RowFormat, RowSpec
from dsv4_kernels.sampling import SampleRows
from dsv4_kernels.tensors import FoldRuns
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

EPS = 1e-6
Rows = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """`rows` makes inputs with one leading index per token; `run` computes them beside what all tokens share."""

    op: str
    rows: Callable[[int], Rows]
    run: Callable[[OpTable, Rows], Tensor | tuple[Tensor, ...]]


def weight(*shape: int) -> LinearWeight:
    return LinearWeight(dense=torch.randn(shape))


def experts(num: int, hidden: int, inter: int) -> ExpertWeights:
    up = (num, inter, hidden)
    return ExpertWeights(w1=torch.randn(up), w2=torch.randn(num, hidden, inter), w3=torch.randn(up))


def projections(width: int) -> list[Case]:
    w, grouped, up, gate, down = (
        weight(33, width),
        weight(3 * 7, width),
        weight(40, width),
        weight(40, width),
        weight(width, 40),
    )
    pool = experts(6, width, 40)
    return [
        Case("linear", lambda t: (torch.randn(t, width),), lambda o, r: o.linear(r[0], w)),
        Case("grouped_linear", lambda t: (torch.randn(t, 3, width),), lambda o, r: o.grouped_linear(r[0], grouped)),
        Case(
            "gated_mlp", lambda t: (torch.randn(t, width),), lambda o, r: o.gated_mlp(r[0], up, gate, down, 5.0, True)
        ),
        Case(
            "moe",
            lambda t: (torch.randn(t, width), torch.randint(-1, 6, (t, 3)), torch.rand(t, 3)),
            lambda o, r: o.moe(r[0], pool, r[1], r[2], 5.0, True),
        ),
    ]


def fold_each(ops: OpTable, rows: tuple[Tensor, ...]) -> Tensor:
    """Fold 40 rows of each sequence into an entry."""
    values, gates = rows
    count, slots, width = values.shape
    runs = FoldRuns(
        begins=torch.full((count,), -1),
        offsets=torch.arange(count + 1) * slots,
        sources=torch.arange(count * slots),
        ends=torch.full((count,), -1),
    )
    return ops.compress_fold(values.view(-1, width), gates.view(-1, width), torch.zeros(0, 3, width), runs)


def rowwise(width: int) -> list[Case]:
    scale, pairs, power = torch.randn(width), width // 2 * 2, 1 << width.bit_length()
    packed = RowSpec(format=RowFormat.PACKED, width=width, rope_dim=width // 2)
    return [
        Case("rms_norm", lambda t: (torch.randn(t, width),), lambda o, r: o.rms_norm(r[0], scale, EPS)),
        Case(
            "rope_rotate",
            lambda t: (torch.randn(t, 2, pairs), torch.randn(t, pairs // 2), torch.randn(t, pairs // 2)),
            lambda o, r: o.rope_rotate(*r),
        ),
        Case("fp8_round_trip", lambda t: (torch.randn(t, width),), lambda o, r: o.fp8_round_trip(r[0], 64)),
        Case("int8_round_trip", lambda t: (torch.randn(t, width),), lambda o, r: o.int8_round_trip(r[0], 32)),
        Case("fp4_round_trip", lambda t: (torch.randn(t, width),), lambda o, r: o.fp4_round_trip(r[0])),
        Case("hadamard", lambda t: (torch.randn(t, power),), lambda o, r: o.hadamard(r[0])),
        Case(
            "compress_pool",
            lambda t: (torch.randn(t, 8, width), torch.randn(t, 8, width)),
            lambda o, r: o.compress_pool(*r),
        ),
        Case(
            "pack_rows",
            lambda t: (torch.randn(t, width),),
            lambda o, r: o.pack_rows(r[0], packed).data.float(),
        ),
        Case("compress_fold", lambda t: (torch.randn(t, 40, width), torch.randn(t, 40, width)), fold_each),
        Case(
            "route",
            lambda t: (torch.randn(t, width + 4),),
            lambda o, r: o.route(r[0], None, None, 4, 2.5),
        ),
    ]


def hyper(width: int) -> list[Case]:
    fn, head, base, scale = torch.randn(24, 4 * width), torch.randn(4, 4 * width), torch.randn(24), torch.randn(3)
    streams = lambda t: torch.randn(t, 4, width)  # noqa: E731 - one line beside its users
    return [
        Case("hyper_maps", lambda t: (streams(t),), lambda o, r: o.hyper_maps(r[0], fn, base, scale, EPS, EPS, 20)),
        Case(
            "hyper_head", lambda t: (streams(t),), lambda o, r: o.hyper_head(r[0], head, base[:4], scale[:1], EPS, EPS)
        ),
        Case("hyper_collapse", lambda t: (streams(t), torch.randn(t, 4)), lambda o, r: o.hyper_collapse(*r)),
        Case(
            "hyper_mix",
            lambda t: (streams(t), torch.randn(t, width), torch.randn(t, 4), torch.randn(t, 4, 4)),
            lambda o, r: o.hyper_mix(*r),
        ),
    ]


def attention(width: int) -> list[Case]:
    window, entries = CacheRows.plain(torch.randn(60, width)), CacheRows.plain(torch.randn(200, width))
    sink, rows = torch.randn(6), torch.randperm(200)
    return [
        Case(
            "sparse_attention",
            lambda t: (torch.randn(t, 6, width), torch.randint(-1, 60, (t, 30)), torch.randint(-1, 200, (t, 50))),
            lambda o, r: o.sparse_attention(
                r[0], WindowRows(window, window, r[1]), EntryRows(entries, r[2]), sink, 0.1
            ),
        ),
        Case(
            "index_select",
            lambda t: (torch.randn(t, 6, width), torch.randn(t, 6), torch.randint(0, 201, (t,))),
            lambda o, r: o.index_select(r[0], r[1], entries, rows, r[2], 20),
        ),
        Case(
            "sample_tokens",
            lambda t: (torch.randn(t, width), torch.rand(t, 3, dtype=torch.float64), torch.randint(0, 9, (t,))),
            lambda o, r: o.sample_tokens(r[0], SampleRows(r[1][:, 0], r[2], r[1][:, 1], r[1][:, 1] / 9, r[1][:, 2])),
        ),
    ]


HEAVY = {"moe", "sparse_attention", "index_select", "compress_pool", "compress_fold"}


def cases(width: int) -> dict[str, Case]:
    made = [*projections(width), *rowwise(width), *hyper(width), *attention(width)]
    return {case.op: case for case in made}


def outputs(case: Case, ops: OpTable, rows: Rows) -> tuple[Tensor, ...]:
    result = case.run(ops, rows)
    return result if isinstance(result, tuple) else (result,)


def assert_same_bits(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one.view(torch.int32), other.view(torch.int32))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_every_operator_has_a_case():
    assert set(cases(8)) == set(OPERATORS)


@pytest.mark.parametrize("op", OPERATORS)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), width=st.integers(1, 150), tokens=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_a_row_has_the_same_bits_alone_and_in_any_batch(
    op: str, data: st.DataObject, width: int, tokens: int, seed: int, cpu: OpTable
):
    torch.manual_seed(seed)
    case = cases(width)[op]
    rows = case.rows(tokens)
    whole = outputs(case, cpu, rows)
    first = data.draw(st.integers(0, tokens - 1))
    last = data.draw(st.integers(first + 1, tokens))
    part = outputs(case, cpu, tuple(r[first:last] for r in rows))
    assert_same_bits(part, tuple(out[first:last] for out in whole))


@pytest.mark.parametrize("op", OPERATORS)
def test_a_row_has_the_same_bits_at_any_place(op: str, cpu: OpTable):
    torch.manual_seed(1)
    case = cases(130)[op]
    rows, order = case.rows(23), torch.randperm(23)
    whole = outputs(case, cpu, rows)
    assert_same_bits(outputs(case, cpu, tuple(r[order] for r in rows)), tuple(out[order] for out in whole))


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("is_shared", [False, True])
def test_the_number_of_threads_changes_no_bit(op: str, is_shared: bool, cpu: OpTable):
    """Three threads share work of 2^19 multiply-adds each (GRAIN in lanes.h)."""
    torch.manual_seed(2)
    case = cases(1000)[op]
    rows = case.rows((70 if op in HEAVY else 1600) if is_shared else 1)
    alone = outputs(case, cpu, rows)
    for count in (2, 3):
        with threads(count):
            assert_same_bits(outputs(case, cpu, rows), alone)


def test_padding_between_rows_changes_no_bit_of_attention(cpu: OpTable):
    torch.manual_seed(3)
    query, cache, sink = torch.randn(4, 6, 64), CacheRows.plain(torch.randn(50, 64)), torch.randn(6)
    rows = torch.randint(0, 50, (4, 19))
    spread = torch.full((4, 57), -1)
    spread[:, 1::3] = rows
    plain = cpu.sparse_attention(query, WindowRows(cache, cache, rows), None, sink, 0.125)
    padded = cpu.sparse_attention(
        query, WindowRows(cache, cache, spread), EntryRows(cache, torch.full((4, 9), -1)), sink, 0.125
    )
    assert_same_bits((padded,), (plain,))


def test_later_entries_change_no_bit_of_an_earlier_selection(cpu: OpTable):
    torch.manual_seed(4)
    query, weights, cache = torch.randn(3, 8, 32), torch.randn(3, 8), CacheRows.plain(torch.randn(400, 32))
    visible = torch.tensor([100, 57, 130])
    few = cpu.index_select(query, weights, cache, torch.arange(130), visible, 16)
    assert torch.equal(cpu.index_select(query, weights, cache, torch.arange(400), visible, 16), few)
