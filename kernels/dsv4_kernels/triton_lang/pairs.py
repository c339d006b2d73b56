"""Every (kernel, configuration) that a model launches: its operators are run on tensors without data and recorded.

What is compiled offline is therefore what would be launched, and no operator can depend on what its tensors hold.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsv4_kernels.cache import CacheRows, EntryRows, WindowRows
from dsv4_kernels.device_weights import DeviceWeight, dense_weight, quantised_weight
from dsv4_kernels.packing import CODE_TYPE, SCALE_TYPE
from dsv4_kernels.rows import RowSpec
from dsv4_kernels.tensors import FoldRuns, QuantTensor, WeightFormat, code_shape, scale_shape
from dsv4_kernels.triton_lang import attention, cache, compress, hyper, index, linear, moe, route, rowwise
from dsv4_kernels.triton_lang.arch import Arch
from dsv4_kernels.triton_lang.device.numbers import VARIABLE
from dsv4_kernels.triton_lang.launch import Device, Launch
from dsv4_kernels.triton_lang.profiles import (
    CSA_RATIO,
    ENTRY,
    HCA_RATIO,
    HEAD_DIM,
    INDEX_DIM,
    INDEX_HEADS,
    INDEX_KEYS,
    ROPE_DIM,
    STREAMS,
    TOP_EXPERTS,
    WINDOW,
    Profile,
)  # fmt: skip

DECODE_TOKENS = (1, 64)
PREFILL_TOKENS = 2048
CONTEXT = 65_536
PAGE_TOKENS = 128
BF16 = torch.bfloat16
TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.uint8: "*u8", torch.float8_e4m3fn: "*fp8e4nv",
    torch.int64: "*i64", torch.int32: "*i32",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One kernel in one configuration: what a compilation needs.

    Rule: types[i] is "constexpr" for a parameter whose value is in constants; aligned lists the parameters that are
          pointers, or multiples of 16. tokens is the smallest step (of those looked at) that launches it.
    """

    op: str
    tokens: int
    kernel: Any
    types: tuple[str, ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]
    num_warps: int
    num_stages: int

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__)

    @property
    def format(self) -> str:
        """What its matrix product multiplies, as `arch.Arch.formats` calls it; "" where it has none."""
        values = dict(self.constants)
        if "FORMAT" in values and "BLOCK_K" in values:
            is_wide = values["FORMAT"] == "dense" and "*fp32" in self.types[2:4]
            return "dense float32" if is_wide else str(values["FORMAT"])
        return {"project_part": "dense float32", "attend_split": "dense", "score_entries": "dense"}.get(
            self.name, "mxfp4 x mxfp4" if self.name == "score_packed" else ""
        )

    @property
    def configuration(self) -> str:
        """Constants and options in one line, those that every launch of the kernel shares included."""
        shown = [f"{name}={_shown(value)}" for name, value in self.constants]
        return " ".join([*shown, f"warps={self.num_warps}", f"stages={self.num_stages}"])


def pairs_of(arch: Arch, profile: Profile) -> tuple[Pair, ...]:
    """Every pair of a model on an architecture, once, in the order of a step."""
    found: dict[tuple[Any, ...], Pair] = {}
    for op, tokens, launch in launches(arch, profile):
        pair = _pair(op, tokens, launch)
        key = (pair.name, pair.types, pair.constants, pair.aligned, pair.num_warps, pair.num_stages)
        found.setdefault(key, pair)
    return tuple(found.values())


def launches(arch: Arch, profile: Profile) -> Iterator[tuple[str, int, Launch]]:
    """(operator, tokens, launch) of decode steps and of a prefill."""
    for tokens in (*DECODE_TOKENS, PREFILL_TOKENS):
        with torch.device("meta"):
            found = _recorded(arch, profile, tokens)
        yield from ((op, tokens, launch) for op, launch in found)


def _recorded(arch: Arch, profile: Profile, tokens: int) -> list[tuple[str, Launch]]:
    found: list[tuple[str, Launch]] = []
    for op, call in operators(profile, tokens):
        recorded: list[Launch] = []
        call(Device(arch, recorded.append))
        found += ((op, launch) for launch in recorded)
    return found


def operators(profile: Profile, tokens: int) -> Iterator[tuple[str, Callable[[Device], object]]]:
    """(operator, a call of it at its real shapes) for a step of so many tokens, on torch's default device."""
    yield from _projections(profile, tokens)
    yield from _elementwise(profile, tokens)
    yield from _sparse(profile, tokens)
    yield from _experts(profile, tokens)


def empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    """A tensor with any data, or none."""
    return torch.empty(shape, dtype=dtype)


def stored(format: WeightFormat, rows: int, columns: int) -> QuantTensor:
    """A weight with any data, or none."""
    scales = scale_shape(format, (rows, columns))
    return QuantTensor(
        format=format,
        codes=empty(*code_shape(format, (rows, columns)), dtype=CODE_TYPE[format]),
        scales=None if scales is None else empty(*scales, dtype=SCALE_TYPE[format]),
        shape=(rows, columns),
    )


def fp8_shapes(p: Profile) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of the attention's FP8 projections; wq_a and wkv are one matrix."""
    return (
        (p.q_rank + HEAD_DIM, p.hidden),
        (p.heads * HEAD_DIM, p.q_rank),
        (INDEX_HEADS * INDEX_DIM, p.q_rank),
        (p.hidden, p.out_groups * p.out_rank),
    )


def _projections(p: Profile, tokens: int) -> Iterator[tuple[str, Callable[[Device], object]]]:
    for rows, columns in fp8_shapes(p):
        weight = quantised_weight([stored(WeightFormat.FP8, rows, columns)])
        yield "linear fp8", _call(linear.linear, empty(tokens, columns), weight)
    for rows in (4 * HEAD_DIM, 2 * HEAD_DIM, 4 * INDEX_DIM, INDEX_HEADS, p.experts):  # compressors, index weights, gate
        yield "linear bf16", _call(linear.linear, empty(tokens, p.hidden), dense_weight(empty(rows, p.hidden)))
    head = dense_weight(empty(p.vocab, p.hidden))
    yield "linear bf16", _call(linear.linear, empty(min(tokens, 64), p.hidden), head)
    group_columns = p.heads * HEAD_DIM // p.out_groups
    wo_a = stored(WeightFormat.FP8, p.out_groups * p.out_rank, group_columns)
    out = empty(tokens, p.out_groups, group_columns)
    yield "grouped_linear", _call(linear.grouped_linear, out, quantised_weight([wo_a], num_groups=p.out_groups))


def _elementwise(p: Profile, tokens: int) -> Iterator[tuple[str, Callable[[Device], object]]]:
    angles = empty(tokens, ROPE_DIM // 2, dtype=torch.float32)
    streams, small = empty(tokens, STREAMS, p.hidden), empty(tokens, STREAMS, dtype=torch.float32)
    f32 = torch.float32
    yield "rms_norm", _call(rowwise.rms_norm, empty(tokens, p.hidden), empty(p.hidden), 1e-6)
    yield "rms_norm", _call(rowwise.rms_norm, empty(tokens, p.heads, HEAD_DIM), None, 1e-6)
    for inverse in (False, True):
        yield "rope_rotate", _call(rowwise.rope_rotate, empty(tokens, p.heads, ROPE_DIM), angles, angles, inverse)
    yield "fp8_round_trip", _call(rowwise.fp8_round_trip, empty(tokens, HEAD_DIM - ROPE_DIM), 64)
    yield "fp4_round_trip", _call(rowwise.fp4_round_trip, empty(tokens, INDEX_HEADS, INDEX_DIM))
    yield "hadamard", _call(rowwise.hadamard, empty(tokens, INDEX_HEADS, INDEX_DIM))
    rows = (2 + STREAMS) * STREAMS
    maps = (empty(rows, STREAMS * p.hidden, dtype=f32), empty(rows, dtype=f32), empty(3, dtype=f32), 1e-6, 1e-6)
    yield "hyper_maps", _call(hyper.hyper_maps, streams, *maps, 20)
    yield "hyper_collapse", _call(hyper.hyper_collapse, streams, small)
    mixing = empty(tokens, STREAMS, STREAMS, dtype=f32)
    yield "hyper_mix", _call(hyper.hyper_mix, streams, empty(tokens, p.hidden), small, mixing)
    head = (empty(STREAMS, STREAMS * p.hidden, dtype=f32), empty(STREAMS, dtype=f32), empty(1, dtype=f32), 1e-6, 1e-6)
    yield "hyper_head", _call(hyper.hyper_head, streams, *head)
    logits, bias = empty(tokens, p.experts, dtype=f32), empty(p.experts, dtype=f32)
    yield "route", _call(route.route, logits, bias, None, TOP_EXPERTS, 2.5)
    yield "route", _call(route.route, logits, None, numbers(p.experts, tokens, TOP_EXPERTS), TOP_EXPERTS, 2.5)
    for slots, width in ((2 * CSA_RATIO, HEAD_DIM), (2 * CSA_RATIO, INDEX_DIM), (HCA_RATIO, HEAD_DIM)):
        values = empty(max(1, tokens // 4), slots, width, dtype=f32)
        yield "compress_pool", _call(compress.compress_pool, values, values)
    yield "compress_fold", _fold(tokens)


def _sparse(p: Profile, tokens: int) -> Iterator[tuple[str, Callable[[Device], object]]]:
    for spec in (ENTRY, *INDEX_KEYS):
        yield "pack_rows", _call(cache.pack_rows, empty(tokens, spec.width), spec)
    query, sink = empty(tokens, p.heads, HEAD_DIM), empty(p.heads, dtype=torch.float32)
    window = WindowRows(rows_of(ENTRY, WINDOW), rows_of(ENTRY, tokens), numbers(WINDOW, tokens, WINDOW))
    for entries in (None, EntryRows(rows_of(ENTRY, CONTEXT), numbers(CONTEXT, tokens, p.index_topk))):
        yield "sparse_attention", _call(attention.sparse_attention, query, window, entries, sink, HEAD_DIM**-0.5)
    index_query = empty(tokens, INDEX_HEADS, INDEX_DIM)
    weights = empty(tokens, INDEX_HEADS)
    visible = torch.full((tokens,), CONTEXT // CSA_RATIO)
    count, page_rows = CONTEXT // CSA_RATIO, PAGE_TOKENS // CSA_RATIO
    for spec in INDEX_KEYS:
        keys, name = rows_of(spec, count), f"index_select {spec.format.value}"
        given: tuple[Any, ...] = (index_query, weights, keys, numbers(count, count), visible, p.index_topk)
        if tokens in DECODE_TOKENS:  # a padded step: each token with the pages of its sequence
            pages = numbers(count // page_rows, tokens, count // page_rows)
            given = (index_query, weights, keys, pages, visible, p.index_topk, page_rows)
        yield name, _call(index.index_select, *given)


def _experts(p: Profile, tokens: int) -> Iterator[tuple[str, Callable[[Device], object]]]:
    x = empty(tokens, p.hidden)
    ids, weights = numbers(p.experts, tokens, TOP_EXPERTS), empty(tokens, TOP_EXPERTS, dtype=torch.float32)

    def stack(format: WeightFormat, count: int, input_scale: float) -> moe.Experts:
        def part(rows: int, columns: int) -> DeviceWeight:
            return quantised_weight([stored(format, rows, columns)] * count, input_scale)

        return moe.Experts(w1=part(p.inter, p.hidden), w3=part(p.inter, p.hidden), w2=part(p.hidden, p.inter))

    kinds = (("mxfp4", WeightFormat.MXFP4, 0.0), ("nvfp4 w4a16", WeightFormat.NVFP4, 0.0))
    for name, format, scale in (*kinds, ("nvfp4 w4a4", WeightFormat.NVFP4, 0.01)):
        yield f"moe {name}", _call(moe.moe, x, stack(format, p.experts, scale), ids, weights, 10.0, True)
    yield "gated_mlp fp8", _call(moe.gated_mlp, x, stack(WeightFormat.FP8, 1, 0.0), 10.0, True)


def rows_of(spec: RowSpec, count: int) -> CacheRows:
    """A cache with any data, or none."""
    return CacheRows(empty(count, spec.row_bytes, dtype=torch.uint8), spec)


def numbers(limit: int, *shape: int) -> Tensor:
    """Row numbers or expert ids 0 … limit - 1, spread evenly."""
    step = max(1, limit // 7) | 1  # neighbours lie far apart
    return (torch.arange(math.prod(shape)) * step % limit).view(shape)


def _fold(tokens: int) -> Callable[[Device], object]:
    values, states = empty(tokens, HEAD_DIM, dtype=torch.float32), empty(8, 3, HEAD_DIM, dtype=torch.float32)
    runs = FoldRuns(
        begins=torch.tensor([-1, 0]),
        offsets=torch.tensor([0, tokens // 2, tokens]),
        sources=torch.arange(tokens),
        ends=torch.tensor([0, -1]),
        num_entries=1,
    )
    return _call(compress.compress_fold, values, values, states, runs)


def _call(function: Callable[..., object], *arguments: object) -> Callable[[Device], object]:
    return lambda device: function(device, *arguments)


def _pair(op: str, tokens: int, launch: Launch) -> Pair:
    parameters = list(inspect.signature(launch.kernel.fn).parameters)
    types, constants, aligned = [], dict(launch.constants), []
    for place, name in enumerate(parameters):
        value = launch.arguments[place] if place < len(launch.arguments) else None
        if isinstance(value, Tensor):
            types.append(TYPES[value.dtype])
            aligned.append(place)
        elif value is None or (isinstance(value, int) and value == 1 and name not in VARIABLE):
            types.append("constexpr")  # Triton makes an argument of 1 a constant
            constants.setdefault(name, value)
        elif isinstance(value, float):
            types.append("fp32")
        else:
            types.append("i32" if value < 1 << 31 else "i64")
            aligned += [place] if value % 16 == 0 and name not in VARIABLE else []
    return Pair(
        op=op,
        tokens=tokens,
        kernel=launch.kernel,
        types=tuple(types),
        constants=tuple((name, constants[name]) for name in parameters if name in constants),
        aligned=tuple(aligned),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )


def _shown(value: object) -> str:
    return str(value).removeprefix("triton.language.")
