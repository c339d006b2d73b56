"""Measure each operator of the CPU at Flash's shapes: python build/bench/cpu_ops.py [--threads N] [--tokens 1,64,512]

For each operator and number of tokens: microseconds, the bytes that it must read and write, its multiplications, and
the share of the roofline, which is the time that memory at its measured read bandwidth, or multiplication at the
measured rate of this library's fastest product (FP4 weights, many tokens), would need at least. An operator whose data
fits in the caches can be above 1. Experts: 64 of Flash's 256, of which each token takes 6. Medians by the wall.
Writes build/bench/results/cpu/operators.json and a plot, operators.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cpu_decode import hardware, read_bandwidth
from dsv4_kernels.cache import CacheRows, EntryRows, WindowRows
from dsv4_kernels.dispatch import bind
from dsv4_kernels.ops import OpTable
from dsv4_kernels.packing import CODE_TYPE, SCALE_TYPE
from dsv4_kernels.prepared import ExpertPart, ExpertWeights, LinearWeight, prepare_linear
from dsv4_kernels.rows import RowSpec
from dsv4_kernels.sampling import SampleRows
from dsv4_kernels.tensors import FoldRuns, QuantTensor, WeightFormat, code_shape, scale_shape
from dsv4_kernels.trips import Trip
from dsv4_kernels.triton_lang.profiles import (
    CSA_RATIO,
    ENTRY,
    HEAD_DIM,
    INDEX_DIM,
    INDEX_HEADS,
    INDEX_KEYS,
    PROFILES,
    ROPE_DIM,
    STREAMS,
    TOP_EXPERTS,
    WINDOW,
)
from figures import draw_operators
from torch import Tensor

OUT = Path(__file__).resolve().parent / "results" / "cpu"
MODEL = PROFILES["flash"]
NUM_EXPERTS, ENTRIES, ROUNDS = 64, 16_384, 5
LIMIT = 10.0


@dataclass(frozen=True, slots=True)
class Case:
    """One operator at one number of tokens. Units: bytes that must move, and multiplications."""

    operator: str
    call: Callable[[], object]
    num_bytes: float
    products: float = 0.0


def main() -> int:
    """Measure, draw and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", default="1,64,512")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(5)
    ops, bandwidth = bind("cpu"), read_bandwidth()
    cases = [(tokens, case) for tokens in map(int, args.tokens.split(",")) for case in all_cases(ops, tokens)]
    timed = [(tokens, case, seconds(case.call)) for tokens, case in cases]
    rate = max(case.products / each for _, case, each in timed)
    record: dict[str, Any] = {
        "command": " ".join(["python build/bench/cpu_ops.py", *sys.argv[1:]]),
        "hardware": hardware(),
        "model": f"{MODEL.name} with {NUM_EXPERTS} experts",
        "device": f"{args.threads} threads",
        "read_gigabytes_per_s": round(bandwidth / 1e9, 1),
        "products_per_s": rate,
        "operators": [line(tokens, case, each, bandwidth, rate) for tokens, case, each in timed],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "operators.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw_operators(record, args.out / "operators.png")
    for each in record["operators"]:
        sys.stdout.write("{operator:<24}{tokens:>5}{microseconds:>12}{gigabytes_per_s:>9}{share:>8}\n".format(**each))
    return 0


def line(tokens: int, case: Case, taken: float, bandwidth: float, rate: float) -> dict[str, Any]:
    """One line of the record."""
    least = max(case.num_bytes / bandwidth, case.products / rate)
    return {
        "operator": case.operator,
        "tokens": tokens,
        "microseconds": round(1e6 * taken, 1),
        "gigabytes_per_s": round(case.num_bytes / taken / 1e9, 2),
        "teraflops": round(2 * case.products / taken / 1e12, 4),
        "share": round(least / taken, 3),
    }


def seconds(call: Callable[[], object]) -> float:
    """Median of some rounds after one that does not count."""
    call()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def all_cases(ops: OpTable, tokens: int) -> Iterator[Case]:
    """Every operator, in the order of a layer."""
    yield from _hyper(ops, tokens)
    yield from _projections(ops, tokens)
    yield from _rowwise(ops, tokens)
    yield from _caches(ops, tokens)
    yield from _experts(ops, tokens)
    yield from _end(ops, tokens)


def stored(format: WeightFormat, rows: int, columns: int) -> QuantTensor:
    """A weight with codes that are numbers, and scales near 1."""
    shape, scales = (rows, columns), scale_shape(format, (rows, columns))
    kind = CODE_TYPE[format]
    codes = torch.randint(0, 120, code_shape(format, shape), dtype=torch.uint8)
    held = codes.view(kind) if kind.itemsize == 1 else torch.randn(shape).to(kind)
    return QuantTensor(
        format=format,
        codes=held,
        scales=None if scales is None else torch.full(scales, 120, dtype=torch.uint8).view(SCALE_TYPE[format]),
        shape=shape,
    )


def _floats(*tensors: Tensor) -> float:
    return float(sum(each.nbytes for each in tensors))


def _hyper(ops: OpTable, tokens: int) -> Iterator[Case]:
    n, d = STREAMS, MODEL.hidden
    streams, rows = torch.randn(tokens, n, d), (2 + n) * n
    fn, base = torch.randn(rows, n * d), torch.randn(rows)
    pre, comb, y = torch.rand(tokens, n), torch.rand(tokens, n, n), torch.randn(tokens, d)
    size = _floats(streams)
    args = (streams, fn, base, torch.rand(3), 1e-6, 1e-6, 20)
    yield Case("hyper_maps", lambda: ops.hyper_maps(*args), size + _floats(fn), fn.numel() * tokens)
    yield Case("hyper_collapse", lambda: ops.hyper_collapse(streams, pre), size + _floats(y))
    yield Case("hyper_mix", lambda: ops.hyper_mix(streams, y, pre, comb), 2 * size + _floats(y))
    yield Case("hyper_head", lambda: ops.hyper_head(streams, fn[:n], base[:n], torch.rand(1), 1e-6, 1e-6), size)


def _product(ops: OpTable, name: str, weight: LinearWeight, x: Tensor, made: Trip) -> Case:
    rows, columns = weight.shape
    moved = weight.resident_bytes + _floats(x) + 4 * rows * x.shape[0]
    return Case(name, lambda: ops.linear(x, weight, made), moved, float(rows * columns * x.shape[0]))


def _projections(ops: OpTable, tokens: int) -> Iterator[Case]:
    m, trip = MODEL, Trip.FP8
    for name, rows, columns in (
        ("linear fp8 wq_a", m.q_rank, m.hidden),
        ("linear fp8 wq_b", m.heads * HEAD_DIM, m.q_rank),
        ("linear fp8 wo_b", m.hidden, m.out_groups * m.out_rank),
    ):
        x = ops.fp8_round_trip(torch.randn(tokens, columns), 128)
        yield _product(ops, name, prepare_linear(stored(WeightFormat.FP8, rows, columns)), x, trip)
    x = torch.randn(tokens, m.hidden)
    weight = prepare_linear(stored(WeightFormat.BF16, 2 * HEAD_DIM, m.hidden))
    yield _product(ops, "linear bf16 compressor", weight, x, Trip.NONE)
    width = m.heads * HEAD_DIM // m.out_groups
    wo_a = prepare_linear(stored(WeightFormat.FP8, m.out_groups * m.out_rank, width))
    mixed = torch.randn(tokens, m.out_groups, width)
    moved = wo_a.resident_bytes + _floats(mixed)
    products = float(m.out_groups * m.out_rank * width * tokens)
    yield Case("grouped_linear fp8", lambda: ops.grouped_linear(mixed, wo_a), moved, products)


def _rowwise(ops: OpTable, tokens: int) -> Iterator[Case]:
    x, weight = torch.randn(tokens, MODEL.hidden), torch.randn(MODEL.hidden)
    yield Case("rms_norm", lambda: ops.rms_norm(x, weight, 1e-6), 2 * _floats(x))
    turned, angles = torch.randn(tokens, MODEL.heads, ROPE_DIM), torch.randn(tokens, ROPE_DIM // 2)
    yield Case("rope_rotate", lambda: ops.rope_rotate(turned, angles, angles), 2 * _floats(turned))
    yield Case("fp8_round_trip", lambda: ops.fp8_round_trip(x, 128), 2 * _floats(x))
    index = torch.randn(tokens, INDEX_HEADS, INDEX_DIM)
    yield Case("fp4_round_trip", lambda: ops.fp4_round_trip(index), 2 * _floats(index))
    yield Case("hadamard", lambda: ops.hadamard(index), 2 * _floats(index))
    block = torch.randn(max(1, tokens // CSA_RATIO), 2 * CSA_RATIO, HEAD_DIM)
    yield Case("compress_pool", lambda: ops.compress_pool(block, block), 2 * _floats(block))
    values, states = torch.randn(tokens, HEAD_DIM), torch.zeros(1, 3, HEAD_DIM)
    ids = {"begins": [-1], "offsets": [0, tokens], "sources": list(range(tokens)), "ends": [-1]}
    runs = FoldRuns(**{name: torch.tensor(each) for name, each in ids.items()})
    yield Case("compress_fold", lambda: ops.compress_fold(values, values, states, runs), 2 * _floats(values))


def _rows(ops: OpTable, spec: RowSpec, count: int) -> CacheRows:
    return ops.pack_rows(torch.randn(count, spec.width), spec)


def _caches(ops: OpTable, tokens: int) -> Iterator[Case]:
    values = torch.randn(tokens, HEAD_DIM)
    yield Case("pack_rows", lambda: ops.pack_rows(values, ENTRY), _floats(values) + tokens * ENTRY.row_bytes)
    keys = _rows(ops, INDEX_KEYS[0], ENTRIES)
    query = ops.fp4_round_trip(torch.randn(tokens, INDEX_HEADS, INDEX_DIM))
    weights, visible = torch.rand(tokens, INDEX_HEADS), torch.full((tokens,), ENTRIES)
    chosen_args = (query, weights, keys, torch.arange(ENTRIES), visible, MODEL.index_topk)
    products = float(tokens * INDEX_HEADS * INDEX_DIM * ENTRIES)
    yield Case("index_select", lambda: ops.index_select(*chosen_args), float(keys.data.nbytes), products)
    window = WindowRows(_rows(ops, ENTRY, WINDOW), _rows(ops, ENTRY, 1), torch.arange(WINDOW).repeat(tokens, 1))
    cache = _rows(ops, ENTRY, ENTRIES)
    rows = torch.stack([torch.randperm(ENTRIES)[: MODEL.index_topk].sort().values for _ in range(tokens)])
    attended, heads = torch.randn(tokens, MODEL.heads, HEAD_DIM), torch.randn(MODEL.heads)
    count = WINDOW + MODEL.index_topk
    yield Case(
        "sparse_attention",
        lambda: ops.sparse_attention(attended, window, EntryRows(cache, rows), heads, HEAD_DIM**-0.5),
        float(min(tokens * MODEL.index_topk, ENTRIES) * ENTRY.row_bytes) + 2 * _floats(attended),
        2.0 * tokens * MODEL.heads * HEAD_DIM * count,
    )


def _experts(ops: OpTable, tokens: int) -> Iterator[Case]:
    m = MODEL
    logits, bias = torch.randn(tokens, NUM_EXPERTS), torch.randn(NUM_EXPERTS)
    yield Case("route", lambda: ops.route(logits, bias, None, TOP_EXPERTS, 2.5), _floats(logits))
    ids, weights = ops.route(logits, bias, None, TOP_EXPERTS, 2.5)
    x = ops.fp8_round_trip(torch.randn(tokens, m.hidden), 128)
    size, products = 3 * m.hidden * m.inter, 3.0 * m.hidden * m.inter * tokens
    num_read = len(set(ids.flatten().tolist()))
    for format in (WeightFormat.MXFP4, WeightFormat.NVFP4):
        experts = ExpertWeights.allocate(NUM_EXPERTS, m.hidden, m.inter, format)
        parts: tuple[tuple[ExpertPart, int, int], ...] = (
            ("w1", m.inter, m.hidden), ("w3", m.inter, m.hidden), ("w2", m.hidden, m.inter),
        )  # fmt: skip
        for part, rows, columns in parts:
            one = stored(format, rows, columns)
            for expert in range(NUM_EXPERTS):
                experts.put(expert, part, one)
        moved = num_read * experts.resident_bytes / NUM_EXPERTS + 2 * _floats(x)
        call = _moe(ops, x, experts, ids, weights)
        yield Case(f"moe {format.value}", call, moved, TOP_EXPERTS * products)
    w1, w3, w2 = (prepare_linear(stored(WeightFormat.FP8, rows, columns)) for _, rows, columns in parts)
    yield Case(
        "gated_mlp fp8",
        lambda: ops.gated_mlp(x, w1, w3, w2, LIMIT, Trip.FP8, made=Trip.FP8),
        size + 2 * _floats(x),
        products,
    )


def _moe(ops: OpTable, x: Tensor, experts: ExpertWeights, ids: Tensor, weights: Tensor) -> Callable[[], object]:
    return lambda: ops.moe(x, experts, ids, weights, LIMIT, Trip.FP8)


def _end(ops: OpTable, tokens: int) -> Iterator[Case]:
    scores = torch.randn(min(tokens, 64), MODEL.vocab)
    settings = SampleRows.of([(1.0, 50, 0.9, 0.05, 0.5)] * scores.shape[0])
    yield Case("sample_tokens", lambda: ops.sample_tokens(scores, settings), _floats(scores))


if __name__ == "__main__":
    sys.exit(main())
