"""Whole decoder layers on the compiled library: one call each. What they compute stands in `dsv4_backend.model`.

Weights, caches and steps are described once, as structures of addresses (layer.h) beside the tensors they point into.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_int64, c_void_p, pointer
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsv4_kernels.cache import CacheRows
from dsv4_kernels.cpu import sublayers as parts
from dsv4_kernels.cpu import weights as descriptors
from dsv4_kernels.cpu.stored import StoredRows
from dsv4_kernels.cpu.table import CpuOps
from dsv4_kernels.errors import ShapeError, require
from dsv4_kernels.groups import CompressorStage, EnterSpec, IndexStage, LayerStage
from dsv4_kernels.prepared import LinearWeight
from dsv4_kernels.steps import EntryTable, Fold, FoldInputs, LayerMemory, LayerStep, PoolInputs, Ring, StepInputs

WeightPointer = POINTER(descriptors.Descriptor)
NO_ROWS = StoredRows(None, 0, 0, 0, 0, 0)
FAILURES = (
    "",
    "a row that the step names lies outside its cache, or a token id outside the vocabulary.",
    "a phase lies outside its compressor's block.",
    "fixed_ids name an expert that does not exist.",
)


def fields_of(kind: Any, names: str) -> tuple[tuple[str, Any], ...]:
    """Fields of one type for a structure."""
    return tuple((name, kind) for name in names.split())


class HyperFields(ctypes.Structure):
    """`Hyper` of layer.h."""

    _fields_ = fields_of(c_void_p, "fn base scale norm")


class _Compressor(ctypes.Structure):
    _fields_ = (
        *fields_of(WeightPointer, "wkv wgate"),
        *fields_of(c_void_p, "ape norm"),
        *fields_of(c_int64, "ratio width rounds"),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *fields_of(HyperFields, "attention feed"),
        *fields_of(WeightPointer, "wq_a wq_b wkv wo_a wo_b"),
        *fields_of(c_void_p, "q_norm kv_norm sink"),
        *fields_of(_Compressor, "main index"),
        *fields_of(WeightPointer, "index_query index_weights gate w1 w3 w2 shared1 shared3 shared2"),
        *fields_of(c_void_p, "bias fixed"),
        *fields_of(c_int64, "streams heads groups index_heads top_k num_chosen vocabulary iterations"),
        *fields_of(c_int64, "rounds_a rounds_b rounds_kv rounds_entry rounds_o"),
        *fields_of(c_int64, "rounds_index rounds_index_query rounds_index_weights"),
        *fields_of(c_int64, "rounds_experts rounds_shared rounds_shared_inner"),
        *fields_of(c_double, "norm_eps hc_eps scale index_scale expert_scale limit"),
    )


class _Ring(ctypes.Structure):
    _fields_ = (*fields_of(c_void_p, "values gates"), ("count", c_int64))


class _Memory(ctypes.Structure):
    _fields_ = (
        *fields_of(StoredRows, "window entries index_keys"),
        *fields_of(_Ring, "ring index_ring"),
        ("folded", c_void_p),
        ("num_states", c_int64),
    )


class _Table(ctypes.Structure):
    _fields_ = (("rows", c_void_p), *fields_of(c_int64, "begin end count"))


class _Step(ctypes.Structure):
    _fields_ = (
        *fields_of(
            c_void_p, "cos sin block_cos block_sin token_ids window_rows ring_tokens ring_rows phases entry_rows"
        ),
        *fields_of(c_void_p, "source_tokens source_rows begins offsets sources ends raw_rows kept_tokens kept_rows"),
        *fields_of(c_void_p, "csa_rows first_entries num_visible hca_rows"),
        ("tables", POINTER(_Table)),
        *fields_of(
            c_int64, "num_tokens rotated window num_ring num_blocks slots num_runs num_sources num_raw num_kept"
        ),
        *fields_of(c_int64, "num_csa num_hca num_tables most_entries"),
    )


@dataclass(frozen=True, slots=True)
class Described:
    """A structure or several, what its addresses point into, and what it says of the shape of streams [T, N, d]."""

    fields: ctypes.Structure | ctypes.Array[c_void_p]
    held: tuple[object, ...]
    shape: tuple[int, ...] = ()


class CpuLayers:
    """Runs whole layers. Threads: as many as torch uses in the calling thread."""

    def __init__(self, twins: CpuOps) -> None:
        self.twins = twins

    def layer(self, stage: LayerStage) -> Described:
        """Describe a layer's weights. Raises: ShapeError if they do not go together."""
        return _layer(stage)

    def memory(self, held: LayerMemory, stage: LayerStage) -> Described:
        """Describe what a layer keeps. Raises: ShapeError if the rows do not go with the layer's weights."""
        return _memory(held, stage)

    def tokens(self, inputs: StepInputs) -> Described:
        """Describe what layers of every kind are told of a step. Raises: ShapeError."""
        return _tokens(inputs)

    def step(self, step: LayerStep, tokens: Described) -> Described:
        """Describe what layers of one kind are told of a step, with all that `tokens` says. Raises: ShapeError."""
        return _step(step, tokens)

    def run(self, layer: Described, memory: Described, step: Described, streams: Tensor) -> Tensor:
        """Compute a layer for every token of a step and keep what later steps need.

        Shapes: streams [T, N, d], returned alike. Raises: ShapeError.
        """
        shape = step.shape + layer.shape
        if streams.dtype is not torch.float32 or not streams.is_contiguous() or streams.shape != shape:
            raise ShapeError(f"streams are {streams.dtype} {list(streams.shape)} but must be float32 {list(shape)}.")
        out = torch.empty_like(streams)
        failed = self.twins.library.dsv4_layer(
            ctypes.byref(layer.fields),
            ctypes.byref(memory.fields),
            ctypes.byref(step.fields),
            streams.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        if failed:
            raise ShapeError(FAILURES[failed])
        return out


def weight_pointer(weight: LinearWeight) -> Any:
    """The descriptor of a weight as a field takes it."""
    return pointer(descriptors.of_linear(weight))


def _hyper(spec: EnterSpec) -> HyperFields:
    addresses, _ = parts.entry_addresses(spec)
    return HyperFields(*addresses)


def _compressor(stage: CompressorStage | None, width: int) -> _Compressor:
    if stage is None:
        return _Compressor()
    inputs, norm = stage.inputs, stage.norm
    rows, columns = inputs.wkv.shape
    fits = inputs.wgate.shape == (rows, columns) and columns == width and rows % norm.shape[0] == 0
    require(fits and inputs.ape.shape[1] == rows, f"a compressor of {list(inputs.wkv.shape)} does not fit its layer.")
    return _Compressor(
        *(weight_pointer(inputs.wkv), weight_pointer(inputs.wgate), reals(inputs.ape), reals(norm)),
        *(inputs.ape.shape[0], norm.shape[0], inputs.rounds),
    )


def _check(stage: LayerStage) -> None:
    """Raises: ShapeError if the weights of a part do not go together, as a call with that part alone would."""
    parts.query_addresses(stage.query)
    parts.key_addresses(stage.keys)
    parts.output_addresses(stage.output)
    parts.expert_addresses(stage.experts)


def _layer(stage: LayerStage) -> Described:
    _check(stage)
    query, keys, output, experts = stage.query, stage.keys, stage.output, stage.experts
    width = query.wq_a.shape[1]
    routed = descriptors.of_experts(experts.experts)
    fields = _Layer(
        attention=_hyper(stage.enter_attention),
        feed=_hyper(stage.enter_experts),
        wq_a=weight_pointer(query.wq_a),
        wq_b=weight_pointer(query.wq_b),
        wkv=weight_pointer(keys.wkv),
        wo_a=weight_pointer(output.wo_a),
        wo_b=weight_pointer(output.wo_b),
        q_norm=reals(query.norm),
        kv_norm=reals(keys.norm),
        sink=reals(stage.sink, query.num_heads),
        main=_compressor(stage.compressor, width),
        gate=weight_pointer(experts.gate),
        bias=None if experts.bias is None else reals(experts.bias),
        fixed=None if stage.fixed_ids is None else stage.fixed_ids.data_ptr(),
        streams=stage.enter_attention.fn.shape[1] // width,
        heads=query.num_heads,
        groups=output.num_groups,
        num_chosen=experts.num_chosen,
        vocabulary=0 if stage.fixed_ids is None else stage.fixed_ids.shape[0],
        iterations=stage.enter_attention.iterations,
        rounds_a=query.rounds_a,
        rounds_b=query.rounds_b,
        rounds_kv=keys.rounds,
        rounds_entry=keys.rounds_entry,
        rounds_o=output.rounds,
        rounds_experts=experts.rounds,
        rounds_shared=experts.rounds_shared,
        rounds_shared_inner=experts.rounds_shared_inner,
        norm_eps=query.eps,
        hc_eps=stage.enter_attention.hc_eps,
        scale=stage.scale,
        expert_scale=experts.scale,
        limit=experts.limit,
    )
    for name, weight in zip(("w1", "w3", "w2"), routed, strict=True):
        setattr(fields, name, pointer(weight))
    for name, part in zip(("shared1", "shared3", "shared2"), experts.shared, strict=True):
        setattr(fields, name, weight_pointer(part))
    _add_index(fields, stage.index, width)
    return Described(fields, (stage,), (fields.streams, width))


def _add_index(fields: _Layer, index: IndexStage | None, width: int) -> None:
    fields.index = _compressor(None if index is None else index.compressor, width)
    if index is None:
        return
    rows, wanted = list(index.wq_b.shape), index.num_heads * index.compressor.norm.shape[0]
    require(rows[0] == wanted, f"wq_b of the indexer is {rows} but must have {wanted} rows.")
    fields.index_query, fields.index_weights = weight_pointer(index.wq_b), weight_pointer(index.weights_proj)
    fields.index_heads, fields.top_k, fields.index_scale = index.num_heads, index.num_chosen, index.scale
    fields.rounds_index, fields.rounds_index_query = index.is_rounded, index.rounds_query
    fields.rounds_index_weights = index.rounds_weights


def _memory(held: LayerMemory, stage: LayerStage) -> Described:
    compressor, index = stage.compressor, stage.index
    fields = _Memory(window=StoredRows.of("window", held.window, stage.keys.wkv.shape[0]))
    if compressor is not None:
        wide = compressor.inputs.wkv.shape[0]
        fields.entries = _rows("entries", held.entries, compressor.norm.shape[0])
        fields.ring = _ring(held.ring or held.fold, wide)
        if held.fold is not None:
            fields.folded, fields.num_states = reals(held.fold.states, -1, 3, wide), held.fold.states.shape[0]
    if index is not None:
        fields.index_keys = _rows("index keys", held.index_keys, index.compressor.norm.shape[0])
        fields.index_ring = _ring(held.index_ring, index.compressor.inputs.wkv.shape[0])
    return Described(fields, (held,))


def _rows(what: str, cache: CacheRows | None, width: int) -> StoredRows:
    return NO_ROWS if cache is None else StoredRows.of(what, cache, width)


def _ring(ring: Ring | Fold | None, width: int) -> _Ring:
    if ring is None:
        return _Ring()
    return _Ring(reals(ring.values, -1, width), reals(ring.gates, -1, width), ring.values.shape[0])


def _tokens(inputs: StepInputs) -> Described:
    count = inputs.token_ids.shape[0]
    ids = _Ids()
    fields = _Step(
        token_ids=ids.of(inputs.token_ids),
        window_rows=ids.of(inputs.window_rows, count),
        ring_tokens=ids.of(inputs.ring_tokens),
        ring_rows=ids.of(inputs.ring_rows, inputs.ring_tokens.shape[0]),
        num_tokens=count,
        window=inputs.window_rows.shape[1],
        num_ring=inputs.ring_rows.shape[0],
    )
    return Described(fields, (inputs, ids.held), (count,))


def _step(step: LayerStep, tokens: Described) -> Described:
    ids, blocks = _Ids(), step.blocks
    fields = _Step.from_buffer_copy(tokens.fields)
    count, half = step.cos.shape
    if count != fields.num_tokens:
        raise ShapeError(f"{[count, half]} angles do not go with {fields.num_tokens} tokens.")
    fields.cos, fields.sin, fields.rotated = reals(step.cos), reals(step.sin), 2 * half
    if blocks is not None:
        _add_blocks(fields, blocks, ids)
        _add_block_angles(fields, step)
    if isinstance(blocks, PoolInputs):
        _add_pools(fields, blocks, ids)
        _add_entries(fields, step.inputs, ids)
    elif isinstance(blocks, FoldInputs):
        _add_folds(fields, blocks, ids)
        _add_all(fields, step.inputs, ids)
    return Described(fields, (step, tokens, ids.held), tokens.shape)


def _add_blocks(fields: _Step, blocks: PoolInputs | FoldInputs, ids: _Ids) -> None:
    fields.num_blocks, fields.num_kept = blocks.entry_rows.shape[0], blocks.ring_tokens.shape[0]
    fields.phases, fields.entry_rows = ids.of(blocks.phases, fields.num_tokens), ids.of(blocks.entry_rows)
    fields.kept_tokens, fields.kept_rows = ids.of(blocks.ring_tokens), ids.of(blocks.ring_rows, fields.num_kept)


def _add_block_angles(fields: _Step, step: LayerStep) -> None:
    """Raises: ShapeError if blocks close without them."""
    cos, sin = step.block_cos, step.block_sin
    if not fields.num_blocks:
        return
    if cos is None or sin is None or 2 * cos.shape[1] != fields.rotated or cos.shape[0] != fields.num_blocks:
        raise ShapeError(f"{cos if cos is None else list(cos.shape)} angles do not go with {fields.num_blocks} blocks.")
    fields.block_cos, fields.block_sin = reals(cos), reals(sin)


def _add_pools(fields: _Step, blocks: PoolInputs, ids: _Ids) -> None:
    fields.slots = blocks.source_tokens.shape[1]
    fields.source_tokens = ids.of(blocks.source_tokens, fields.num_blocks)
    fields.source_rows = ids.of(blocks.source_rows, fields.num_blocks)


def _add_folds(fields: _Step, blocks: FoldInputs, ids: _Ids) -> None:
    runs = blocks.runs
    fields.num_runs, fields.num_raw = runs.begins.shape[0], blocks.raw_rows.shape[0]
    fields.num_sources = runs.sources.shape[0]
    fields.begins, fields.ends = ids.of(runs.begins), ids.of(runs.ends, fields.num_runs)
    fields.offsets, fields.sources = ids.of(runs.offsets, fields.num_runs + 1), ids.of(runs.sources)
    fields.raw_rows = ids.of(blocks.raw_rows)


def _add_entries(fields: _Step, inputs: StepInputs, ids: _Ids) -> None:
    fields.csa_rows, fields.num_csa = ids.of(inputs.csa_rows), inputs.csa_rows.shape[0]
    fields.first_entries = ids.of(inputs.first_entries, fields.num_tokens)
    fields.num_visible = ids.of(inputs.num_visible, fields.num_tokens)
    fields.most_entries, fields.num_tables = inputs.most_entries, len(inputs.csa_tables)
    tables = (_Table * len(inputs.csa_tables))(*(_table(each, ids) for each in inputs.csa_tables))
    ids.held.append(tables)
    fields.tables = tables


def _table(table: EntryTable, ids: _Ids) -> _Table:
    rows = table.index_rows
    return _Table(ids.of(rows), table.tokens.start, table.tokens.stop, rows.shape[0])


def _add_all(fields: _Step, inputs: StepInputs, ids: _Ids) -> None:
    fields.hca_rows, fields.num_hca = ids.of(inputs.hca_rows, fields.num_tokens), inputs.hca_rows.shape[1]


class _Ids:
    """Addresses of row numbers; what they point into is held here."""

    def __init__(self) -> None:
        self.held: list[object] = []

    def of(self, x: Tensor, count: int | None = None) -> int:
        if x.dtype is not torch.int64 or (count is not None and count != x.shape[0]):
            raise ShapeError(f"got {x.dtype} {list(x.shape)} but need int64 of {count} rows.")
        if not x.is_contiguous():
            x = x.contiguous()
            self.held.append(x)
        return x.data_ptr()


def reals(x: Tensor | None, *shape: int) -> int | None:
    """The address of float32 numbers. Rule: -1 in the wanted shape is any size. Raises: ShapeError."""
    if x is None:
        return None
    is_shaped = not shape or (len(shape) == x.dim() and all(a in (-1, b) for a, b in zip(shape, x.shape, strict=True)))
    if not is_shaped or x.dtype is not torch.float32 or not x.is_contiguous():
        raise ShapeError(f"got {x.dtype} {list(x.shape)} but need contiguous float32 {list(shape)}.")
    return x.data_ptr()
