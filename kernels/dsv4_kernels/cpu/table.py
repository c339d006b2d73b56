"""The operators on the compiled library: check shapes, allocate the result, call. Rules stand in `ops.py`."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from dsv4_kernels.cache import CacheRows, EntryRows, WindowRows, rows_of_pages
from dsv4_kernels.cpu import weights as descriptors
from dsv4_kernels.cpu.stored import FORMAT_CODES, StoredRows
from dsv4_kernels.errors import ShapeError, require
from dsv4_kernels.prepared import ExpertWeights, LinearWeight
from dsv4_kernels.reference.cache import pack_rows
from dsv4_kernels.rows import RowFormat, RowSpec
from dsv4_kernels.sampling import NEGLIGIBLE, SampleRows, num_words
from dsv4_kernels.tensors import FoldRuns
from dsv4_kernels.trips import Trip

CASTS = (RowFormat.FP32, RowFormat.BF16)


def _f32(x: Tensor, *dims: int) -> Tensor:
    """x itself if contiguous float32 with one of these numbers of dimensions (any if none is named); else a copy."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or (dims and x.dim() not in dims):
        raise ShapeError(f"got {x.dtype} {list(x.shape)} on {x.device} but need float32 on cpu, dimensions {dims}.")
    return x if x.is_contiguous() else x.contiguous()


def _i64(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    if x.dtype != torch.int64 or tuple(x.shape) != shape:
        raise ShapeError(f"got {x.dtype} {list(x.shape)} but need int64 {list(shape)}.")
    return x if x.is_contiguous() else x.contiguous()


def _shaped(what: str, x: Tensor, *shape: int) -> Tensor:
    if tuple(x.shape) != shape:
        raise ShapeError(f"{what} is {list(x.shape)} but must be {list(shape)} to go with the other inputs.")
    return _f32(x)


class CpuOps:
    """One method per operator of `OpTable`. Threads: as many as torch uses in the calling thread."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def linear(self, x: Tensor, weight: LinearWeight, made: Trip = Trip.NONE) -> Tensor:
        """As `ops.Linear`."""
        x = _f32(x, 2)
        held = descriptors.of_linear(weight)
        n, k = held.rows, held.columns
        tokens, channels = x.shape
        if channels != k:
            raise ShapeError(f"x has {channels} channels but the weight takes {k}.")
        y = torch.empty(tokens, n)
        self.library.dsv4_linear(
            x.data_ptr(), ctypes.byref(held), y.data_ptr(), tokens, 1, made, torch.get_num_threads()
        )
        return y

    def grouped_linear(self, x: Tensor, weight: LinearWeight) -> Tensor:
        """As `ops.GroupedLinear`."""
        x = _f32(x, 3)
        held = descriptors.of_linear(weight)
        rows, k = held.rows, held.columns
        tokens, groups, width = x.shape
        require(width == k and rows % groups == 0, f"x is {list(x.shape)} but the weight is {[rows, k]}.")
        y = torch.empty(tokens, groups, rows // groups)
        self.library.dsv4_linear(
            x.data_ptr(), ctypes.byref(held), y.data_ptr(), tokens, groups, Trip.NONE, torch.get_num_threads()
        )
        return y

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """As `ops.RmsNorm`."""
        x = _f32(x)
        width = x.shape[-1]
        if weight is not None:
            weight = _shaped("weight", weight, width)
        pointer = None if weight is None else weight.data_ptr()
        y = torch.empty_like(x)
        rows = x.numel() // max(1, width)
        self.library.dsv4_rms_norm(x.data_ptr(), pointer, y.data_ptr(), rows, width, eps, torch.get_num_threads())
        return y

    def rope_rotate(self, x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False) -> Tensor:
        """As `ops.RopeRotate`."""
        x = _f32(x, 2, 3)
        tokens, width = x.shape[0], x.shape[-1]
        heads = x.shape[1] if x.dim() == 3 else 1
        require(width % 2 == 0, f"rotated width is {width} but must be even.")
        cos, sin = _shaped("cos", cos, tokens, width // 2), _shaped("sin", sin, tokens, width // 2)
        y = torch.empty_like(x)
        self.library.dsv4_rope_rotate(
            x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr(), tokens, heads, width, inverse
        )
        return y

    def fp8_round_trip(self, x: Tensor, group: int) -> Tensor:
        """As `ops.Fp8RoundTrip`."""
        x = _f32(x)
        y = torch.empty_like(x)
        rows = x.numel() // max(1, x.shape[-1])
        self.library.dsv4_fp8_round_trip(x.data_ptr(), y.data_ptr(), rows, x.shape[-1], group, torch.get_num_threads())
        return y

    def int8_round_trip(self, x: Tensor, group: int) -> Tensor:
        """As `ops.Int8RoundTrip`."""
        x = _f32(x)
        y = torch.empty_like(x)
        rows = x.numel() // max(1, x.shape[-1])
        self.library.dsv4_int8_round_trip(x.data_ptr(), y.data_ptr(), rows, x.shape[-1], group, torch.get_num_threads())
        return y

    def fp4_round_trip(self, x: Tensor, group: int = 32) -> Tensor:
        """As `ops.Fp4RoundTrip`."""
        x = _f32(x)
        y = torch.empty_like(x)
        rows = x.numel() // max(1, x.shape[-1])
        self.library.dsv4_fp4_round_trip(x.data_ptr(), y.data_ptr(), rows, x.shape[-1], group, torch.get_num_threads())
        return y

    def hadamard(self, x: Tensor) -> Tensor:
        """As `ops.Hadamard`."""
        x = _f32(x)
        width = x.shape[-1]
        require(width > 0 and width & (width - 1) == 0, f"width is {width} but must be a power of two.")
        y = torch.empty_like(x)
        self.library.dsv4_hadamard(
            x.data_ptr(), y.data_ptr(), x.numel() // width, width, 1 / math.sqrt(width), torch.get_num_threads()
        )
        return y

    def hyper_maps(
        self,
        streams: Tensor,
        fn: Tensor,
        base: Tensor,
        scale: Tensor,
        norm_eps: float,
        hc_eps: float,
        iterations: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `ops.HyperMaps`."""
        streams = _f32(streams, 3)
        tokens, n, width = streams.shape
        fn = _shaped("fn", fn, (2 + n) * n, n * width)
        base, scale = _shaped("base", base, (2 + n) * n), _shaped("scale", scale, 3)
        maps = torch.empty(tokens, n), torch.empty(tokens, n), torch.empty(tokens, n, n)
        inputs = (streams.data_ptr(), fn.data_ptr(), base.data_ptr(), scale.data_ptr())
        outputs = (out.data_ptr() for out in maps)
        threads = torch.get_num_threads()
        self.library.dsv4_hyper_maps(*inputs, *outputs, tokens, n, width, norm_eps, hc_eps, iterations, threads)
        return maps

    def hyper_collapse(self, streams: Tensor, pre: Tensor) -> Tensor:
        """As `ops.HyperCollapse`."""
        streams = _f32(streams, 3)
        tokens, n, width = streams.shape
        pre = _shaped("pre", pre, tokens, n)
        y = torch.empty(tokens, width)
        threads = torch.get_num_threads()
        self.library.dsv4_hyper_collapse(streams.data_ptr(), pre.data_ptr(), y.data_ptr(), tokens, n, width, threads)
        return y

    def hyper_mix(self, streams: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        """As `ops.HyperMix`."""
        streams = _f32(streams, 3)
        tokens, n, width = streams.shape
        y, post = _shaped("y", y, tokens, width), _shaped("post", post, tokens, n)
        comb = _shaped("comb", comb, tokens, n, n)
        out = torch.empty_like(streams)
        pointers = (streams.data_ptr(), y.data_ptr(), post.data_ptr(), comb.data_ptr(), out.data_ptr())
        self.library.dsv4_hyper_mix(*pointers, tokens, n, width, torch.get_num_threads())
        return out

    def hyper_head(
        self, streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, norm_eps: float, hc_eps: float
    ) -> Tensor:
        """As `ops.HyperHead`."""
        streams = _f32(streams, 3)
        tokens, n, width = streams.shape
        fn = _shaped("fn", fn, n, n * width)
        base, scale = _shaped("base", base, n), _shaped("scale", scale, 1)
        y = torch.empty(tokens, width)
        pointers = (streams.data_ptr(), fn.data_ptr(), base.data_ptr(), scale.data_ptr(), y.data_ptr())
        self.library.dsv4_hyper_head(*pointers, tokens, n, width, norm_eps, hc_eps, torch.get_num_threads())
        return y

    def route(
        self, logits: Tensor, bias: Tensor | None, fixed_ids: Tensor | None, k: int, scale: float
    ) -> tuple[Tensor, Tensor]:
        """As `ops.Route`."""
        logits = _f32(logits, 2)
        tokens, num_experts = logits.shape
        require(0 < k <= num_experts, f"k is {k} but there are {num_experts} experts.")
        if bias is not None:
            bias = _shaped("bias", bias, num_experts)
        if fixed_ids is not None:
            fixed_ids = _i64(fixed_ids, (tokens, k))
        ids, weights = torch.empty(tokens, k, dtype=torch.int64), torch.empty(tokens, k)
        optional = (None if bias is None else bias.data_ptr(), None if fixed_ids is None else fixed_ids.data_ptr())
        outputs = (ids.data_ptr(), weights.data_ptr())
        dims = (tokens, num_experts, k, scale, torch.get_num_threads())
        failed = self.library.dsv4_route(logits.data_ptr(), *optional, *outputs, *dims)
        require(not failed, f"fixed_ids name an expert outside 0..{num_experts - 1}.")
        return ids, weights

    def moe(
        self, x: Tensor, experts: ExpertWeights, ids: Tensor, weights: Tensor, limit: float, round_trip: Trip
    ) -> Tensor:
        """As `ops.Moe`."""
        held = descriptors.of_experts(experts)
        return self._experts(x, held, experts.num_experts, ids, weights, (limit, round_trip, round_trip))

    def gated_mlp(
        self,
        x: Tensor,
        w1: LinearWeight,
        w3: LinearWeight,
        w2: LinearWeight,
        limit: float,
        round_trip: Trip,
        *,
        made: Trip = Trip.NONE,
    ) -> Tensor:
        """As `ops.GatedMlp`: an expert layer of one, with weight 1."""
        tokens = x.shape[0]
        held = descriptors.of_linear(w1), descriptors.of_linear(w3), descriptors.of_linear(w2)
        descriptors.check(*held)
        ids = torch.zeros(tokens, 1, dtype=torch.int64)
        return self._experts(x, held, 1, ids, torch.ones(tokens, 1), (limit, made, round_trip))

    def _experts(
        self,
        x: Tensor,
        held: descriptors.Triple,
        num_experts: int,
        ids: Tensor,
        weights: Tensor,
        rule: tuple[float, Trip, Trip],
    ) -> Tensor:
        """`held` is w1, w3 and w2; `rule` the limit and the round trips, outer and inner."""
        x = _f32(x, 2)
        tokens, width = x.shape
        require(width == held[0].columns, f"x has {width} channels but the experts take {held[0].columns}.")
        k = ids.shape[1]
        ids, weights = _i64(ids, (tokens, k)), _shaped("weights", weights, tokens, k)
        y = torch.empty_like(x)
        pointers = tuple(ctypes.byref(each) for each in held)
        rows = (ids.data_ptr(), weights.data_ptr(), y.data_ptr())
        threads = torch.get_num_threads()
        failed = self.library.dsv4_moe(x.data_ptr(), *pointers, *rows, tokens, k, num_experts, *rule, threads)
        require(not failed, f"ids name an expert outside -1..{num_experts - 1}.")
        return y

    def compress_pool(self, values: Tensor, gates: Tensor) -> Tensor:
        """As `ops.CompressPool`."""
        values = _f32(values, 3)
        blocks, slots, width = values.shape
        gates = _shaped("gates", gates, blocks, slots, width)
        y = torch.empty(blocks, width)
        dims = (blocks, slots, width)
        self.library.dsv4_compress_pool(
            values.data_ptr(), gates.data_ptr(), y.data_ptr(), *dims, torch.get_num_threads()
        )
        return y

    def compress_fold(self, values: Tensor, gates: Tensor, states: Tensor, runs: FoldRuns) -> Tensor:
        """As `ops.CompressFold`."""
        values = _f32(values, 2)
        rows, width = values.shape
        gates = _shaped("gates", gates, rows, width)
        require(states.is_contiguous(), "states must be contiguous: they are written in place.")
        states = _shaped("states", states, states.shape[0], 3, width)
        num_runs = runs.begins.shape[0]
        begins, ends = _i64(runs.begins, (num_runs,)), _i64(runs.ends, (num_runs,))
        offsets, sources = _i64(runs.offsets, (num_runs + 1,)), _i64(runs.sources, (runs.sources.shape[0],))
        entries = torch.empty(int((ends < 0).sum()), width)
        inputs = (t.data_ptr() for t in (values, gates, states, begins, offsets, sources, ends))
        self.library.dsv4_compress_fold(*inputs, entries.data_ptr(), num_runs, width, torch.get_num_threads())
        return entries

    def pack_rows(self, values: Tensor, spec: RowSpec) -> CacheRows:
        """As `ops.PackRows`; plain casts are torch's."""
        if spec.format in CASTS:
            return pack_rows(values, spec)
        values = _shaped("values", values, values.shape[0], spec.width)
        data = torch.empty(values.shape[0], spec.row_bytes, dtype=torch.uint8)
        dims = (values.shape[0], spec.row_bytes, FORMAT_CODES[spec.format], spec.width, spec.rope_dim)
        self.library.dsv4_pack_rows(values.data_ptr(), data.data_ptr(), *dims, torch.get_num_threads())
        return CacheRows(data, spec)

    def index_select(
        self,
        query: Tensor,
        head_weights: Tensor,
        cache: CacheRows,
        rows: Tensor,
        num_visible: Tensor,
        k: int,
        page_rows: int = 1,
    ) -> Tensor:
        """As `ops.IndexSelect`. Pages are turned into rows token by token: steps of a CPU name rows."""
        if rows.dim() == 2:
            parts = (
                (
                    query[i : i + 1],
                    head_weights[i : i + 1],
                    cache,
                    rows_of_pages(pages, page_rows),
                    num_visible[i : i + 1],
                )
                for i, pages in enumerate(rows)
            )
            return torch.cat([self.index_select(*part, k) for part in parts])
        query = _f32(query, 3)
        tokens, heads, width = query.shape
        head_weights = _shaped("head_weights", head_weights, tokens, heads)
        keys = StoredRows.of("cache", cache, width)
        rows, num_visible = _i64(rows, (rows.shape[0],)), _i64(num_visible, (tokens,))
        chosen = torch.empty(tokens, k, dtype=torch.int64)
        inputs = (query.data_ptr(), head_weights.data_ptr(), ctypes.byref(keys), rows.data_ptr())
        dims = (tokens, heads, width, rows.shape[0], k)
        outputs = (num_visible.data_ptr(), chosen.data_ptr())
        failed = self.library.dsv4_index_select(*inputs, *outputs, *dims, torch.get_num_threads())
        require(
            not failed, f"a row is outside the cache of {cache.num_rows}, or more than {dims[3]} entries are visible."
        )
        return chosen

    def sparse_attention(
        self, query: Tensor, window: WindowRows, entries: EntryRows | None, sink: Tensor, scale: float
    ) -> Tensor:
        """As `ops.SparseAttention`."""
        query = _f32(query, 3)
        tokens, heads, width = query.shape
        ring, fresh = StoredRows.of("ring", window.ring, width), StoredRows.of("fresh", window.fresh, width)
        window_rows = _i64(window.rows, (tokens, window.rows.shape[1]))
        cache, chosen, num_chosen = ring, None, 0
        if entries is not None:
            cache, entry_rows = StoredRows.of("entries", entries.cache, width), entries.rows
            entry_rows = _i64(entry_rows, (tokens, entry_rows.shape[1]))
            chosen, num_chosen = entry_rows.data_ptr(), entry_rows.shape[1]
        sink = _shaped("sink", sink, heads)
        out = torch.empty_like(query)
        windows = (ctypes.byref(ring), ctypes.byref(fresh), window_rows.data_ptr())
        rest = (ctypes.byref(cache), chosen, sink.data_ptr(), out.data_ptr())
        dims = (tokens, heads, width, window_rows.shape[1], num_chosen)
        failed = self.library.dsv4_sparse_attention(
            query.data_ptr(), *windows, *rest, *dims, scale, torch.get_num_threads()
        )
        require(
            not failed,
            f"a row is outside its cache ({ring.count} window rows, {fresh.count} fresh ones,"
            f" {cache.count if num_chosen else 0} entry rows).",
        )
        return out

    def sample_tokens(self, scores: Tensor, rows: SampleRows) -> Tensor:
        """As `ops.SampleTokens`."""
        scores = _f32(scores, 2)
        count, width = scores.shape
        require(rows.number.shape == (count,), f"scores have {count} rows but the settings {rows.number.shape[0]}.")
        out = torch.empty(count, dtype=torch.int64)
        reals = (rows.temperature, rows.top_p, rows.min_p, rows.number)
        temperature, top_p, min_p, number = (item.contiguous() for item in reals)
        top_k = _i64(rows.top_k, (count,))
        allowed = None if rows.allowed is None else rows.allowed.contiguous()
        if allowed is not None:
            require(
                allowed.dtype == torch.int32 and allowed.shape == (count, num_words(width)),
                f"allowed is {allowed.dtype} {tuple(allowed.shape)} but must be int32 {(count, num_words(width))}.",
            )
        pointers = [item.data_ptr() for item in (temperature, top_k, top_p, min_p, number)]
        pointers.append(0 if allowed is None else allowed.data_ptr())
        self.library.dsv4_sample_tokens(
            scores.data_ptr(), *pointers, out.data_ptr(), count, width, NEGLIGIBLE, torch.get_num_threads()
        )
        return out
