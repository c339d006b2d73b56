"""Cache rows: bytes as the layout says, values as the round trips say, and attention that reads every format."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dsv4_kernels.cache import CacheRows, EntryRows, WindowRows
from dsv4_kernels.errors import ShapeError
from dsv4_kernels.ops import OpTable
from dsv4_kernels.reference.cache import unpack_rows
from dsv4_kernels.rows import RowFormat, RowSpec

ENTRY = RowSpec(format=RowFormat.PACKED, width=512, rope_dim=64)
SPECS = [
    ENTRY,
    RowSpec(format=RowFormat.PACKED, width=128, rope_dim=32),
    RowSpec(format=RowFormat.PACKED, width=70, rope_dim=6),
    RowSpec(format=RowFormat.FP8, width=128),
    RowSpec(format=RowFormat.FP4, width=128),
    RowSpec(format=RowFormat.FP4, width=32),
    RowSpec(format=RowFormat.BF16, width=40),
    RowSpec(format=RowFormat.FP32, width=40),
]
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.format.value}-{spec.width}")


def values_of(spec: RowSpec, count: int = 60) -> torch.Tensor:
    """Rows of very different magnitude, one of zeros and one of subnormal size among them."""
    torch.manual_seed(spec.width)
    values = torch.randn(count, spec.width) * torch.logspace(-9, 5, count)[:, None]
    values[0], values[1] = 0.0, 1e-41
    return values


def worth(cache: CacheRows) -> torch.Tensor:
    return unpack_rows(cache, torch.arange(cache.num_rows))


@pytest.mark.parametrize(
    ("spec", "row_bytes"),
    [
        (ENTRY, 584),
        (RowSpec(format=RowFormat.FP4, width=128), 68),
        (RowSpec(format=RowFormat.FP8, width=128), 132),
        (RowSpec(format=RowFormat.BF16, width=512), 1024),
        (RowSpec(format=RowFormat.FP32, width=512), 2048),
    ],
)
def test_rows_take_the_bytes_of_the_facts(spec: RowSpec, row_bytes: int):
    assert spec.row_bytes == row_bytes


@each_spec
def test_both_tables_store_the_same_bytes(spec: RowSpec, cpu: OpTable, reference: OpTable):
    values = values_of(spec)
    assert torch.equal(cpu.pack_rows(values, spec).data, reference.pack_rows(values, spec).data)


def test_packed_rows_hold_fp8_channels_then_scales_then_bf16_channels(ops: OpTable):
    values = values_of(ENTRY)
    kept = worth(ops.pack_rows(values, ENTRY))
    assert torch.equal(kept[:, :448], ops.fp8_round_trip(values[:, :448].contiguous(), 64))
    assert torch.equal(kept[:, 448:], values[:, 448:].bfloat16().float())
    data = ops.pack_rows(torch.ones(1, 512), ENTRY).data[0]
    assert data[:448].unique().tolist() == [0x78]  # 256 in e4m3, so that the scale is 2^-8
    assert data[448:456].tolist() == [119] * 7 + [0]
    assert data[456:].view(torch.bfloat16).unique().tolist() == [1.0]


def test_fp4_rows_hold_the_lower_channel_in_the_low_bits(ops: OpTable):
    values = torch.tensor([[6.0, -0.5] + [0.0] * 30])
    data = ops.pack_rows(values, RowSpec(format=RowFormat.FP4, width=32)).data[0]
    assert (int(data[0]), int(data[-1])) == (0x97, 127)


@pytest.mark.parametrize("width", [128, 32])
def test_index_keys_of_both_formats_keep_what_the_fp4_round_trip_left(width: int, ops: OpTable):
    keys = ops.fp4_round_trip(torch.randn(50, width), 32)
    for name in (RowFormat.FP4, RowFormat.FP8):
        assert torch.equal(worth(ops.pack_rows(keys, RowSpec(format=name, width=width))), keys)


@each_spec
def test_storing_what_was_stored_changes_nothing(spec: RowSpec, ops: OpTable):
    once = ops.pack_rows(values_of(spec), spec)
    assert torch.equal(worth(ops.pack_rows(worth(once), spec)), worth(once))


@each_spec
def test_attention_reads_rows_as_they_are_stored(spec: RowSpec, ops: OpTable, rng: np.random.Generator):
    cache = ops.pack_rows(torch.randn(30, spec.width), spec)
    plain = CacheRows.plain(worth(cache))
    query, sink = torch.randn(4, 5, spec.width), torch.randn(5)
    window, entries = torch.from_numpy(rng.integers(-31, 30, (4, 9))), torch.from_numpy(rng.integers(-1, 30, (4, 7)))
    got, want = (
        ops.sparse_attention(query, WindowRows(kept, kept, window), EntryRows(kept, entries), sink, 0.1)
        for kept in (cache, plain)
    )
    assert torch.equal(got, want)


@each_spec
def test_entries_are_chosen_by_keys_as_they_are_stored(spec: RowSpec, ops: OpTable):
    keys = ops.pack_rows(torch.randn(300, spec.width), spec)
    inputs = torch.randn(3, 8, spec.width), torch.randn(3, 8)
    rest = torch.randperm(300), torch.tensor([300, 150, 20]), 16
    assert torch.equal(
        ops.index_select(*inputs, keys, *rest), ops.index_select(*inputs, CacheRows.plain(worth(keys)), *rest)
    )


@each_spec
def test_rows_are_inserted_byte_by_byte(spec: RowSpec, ops: OpTable):
    cache, packed = CacheRows.allocate(spec, 9), ops.pack_rows(torch.randn(4, spec.width), spec)
    cache.insert(torch.tensor([7, 2]), packed, torch.tensor([0, 3]))
    assert torch.equal(cache.data[[7, 2]], packed.data[[0, 3]])
    assert int(cache.data[[0, 1, 3, 4, 5, 6, 8]].count_nonzero()) == 0


def test_rows_of_another_format_are_refused(ops: OpTable):
    cache = CacheRows.allocate(ENTRY, 2)
    with pytest.raises(ShapeError, match="do not go into a cache of"):
        cache.insert(torch.tensor([0]), CacheRows.plain(torch.ones(1, 512)))


def test_bytes_that_do_not_fit_the_format_are_refused():
    with pytest.raises(ShapeError, match=r"\[3, 583\].*\[3, 584\]"):
        CacheRows(torch.zeros(3, 583, dtype=torch.uint8), ENTRY)
