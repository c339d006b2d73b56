"""Stretches of a sublayer on the compiled library: one call each. What they compute stands in `sublayers.Composed`.

Addresses of weights are looked up and their shapes checked at the first call with a stage, and kept beside it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from dsv4_kernels.cpu import weights as descriptors
from dsv4_kernels.cpu.table import CpuOps
from dsv4_kernels.errors import ShapeError, require
from dsv4_kernels.groups import CompressStage, EnterSpec, ExpertStage, KeyStage, OutputStage, QueryStage

Stage = TypeVar("Stage")
Addresses = tuple[Any, ...]  # pointers in the order of the call, then what it needs to know of the shapes


class CpuSublayers:
    """As `sublayers.Sublayers`. Threads: as many as torch uses in the calling thread."""

    def __init__(self, twins: CpuOps) -> None:
        self._twins = twins
        self._kept: dict[int, tuple[object, Addresses]] = {}

    def _of(self, stage: Stage, make: Callable[[Stage], Addresses]) -> Addresses:
        """What `make` found out about a stage, once; the stage is held, so that its number stays its own."""
        kept = self._kept.get(id(stage))
        if kept is None:
            kept = self._kept[id(stage)] = (stage, make(stage))
        return kept[1]

    def enter(self, streams: Tensor, spec: EnterSpec) -> tuple[Tensor, Tensor, Tensor]:
        """As `sublayers.Sublayers.enter`."""
        weights, width = self._of(spec, entry_addresses)
        tokens, n, _ = streams.shape
        _check(streams, n * width, streams.stride(0))
        x, post, comb = torch.empty(tokens, width), torch.empty(tokens, n), torch.empty(tokens, n, n)
        outputs = (x.data_ptr(), post.data_ptr(), comb.data_ptr())
        rule = (spec.norm_eps, spec.hc_eps, spec.iterations, torch.get_num_threads())
        self._twins.library.dsv4_enter(streams.data_ptr(), *weights, *outputs, tokens, n, width, *rule)
        return x, post, comb

    def query(self, x: Tensor, stage: QueryStage, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """As `sublayers.Sublayers.query`."""
        weights, width, rank, head = self._of(stage, query_addresses)
        _check(x, width, x.shape[1])
        tokens, heads = x.shape[0], stage.num_heads
        latent, query = torch.empty(tokens, rank), torch.empty(tokens, heads, head)
        places = (*_angles(cos, sin, tokens), latent.data_ptr(), query.data_ptr())
        rule = (stage.eps, stage.rounds_a, stage.rounds_b, torch.get_num_threads())
        self._twins.library.dsv4_query(x.data_ptr(), *weights, *places, tokens, heads, 2 * cos.shape[1], *rule)
        return latent, query

    def keys(self, x: Tensor, stage: KeyStage, cos: Tensor, sin: Tensor) -> Tensor:
        """As `sublayers.Sublayers.keys`."""
        weights, width, rows = self._of(stage, key_addresses)
        _check(x, width, x.shape[1])
        tokens = x.shape[0]
        keys = torch.empty(tokens, rows)
        rule = (stage.eps, stage.rounds, stage.rounds_entry, torch.get_num_threads())
        places = (*_angles(cos, sin, tokens), keys.data_ptr(), tokens, 2 * cos.shape[1])
        self._twins.library.dsv4_keys(x.data_ptr(), *weights, *places, *rule)
        return keys

    def output(self, mixed: Tensor, stage: OutputStage, cos: Tensor, sin: Tensor) -> Tensor:
        """As `sublayers.Sublayers.output`."""
        weights, width, rows = self._of(stage, output_addresses)
        tokens, heads, head = mixed.shape
        _check(mixed, width, heads * head)
        y = torch.empty(tokens, rows)
        places = (*_angles(cos, sin, tokens), y.data_ptr(), tokens, heads, stage.num_groups, 2 * cos.shape[1])
        self._twins.library.dsv4_attention_output(
            mixed.data_ptr(), *weights, *places, stage.rounds, torch.get_num_threads()
        )
        return y

    def compress_inputs(self, x: Tensor, stage: CompressStage, phases: Tensor) -> tuple[Tensor, Tensor]:
        """As `sublayers.Sublayers.compress_inputs`."""
        weights, width, rows = self._of(stage, _compress)
        _check(x, width, x.shape[1])
        tokens = x.shape[0]
        require(phases.dtype == torch.int64 and tuple(phases.shape) == (tokens,), f"phases are {list(phases.shape)}.")
        values, gates = torch.empty(tokens, rows), torch.empty(tokens, rows)
        places = (phases.contiguous().data_ptr(), values.data_ptr(), gates.data_ptr(), tokens)
        failed = self._twins.library.dsv4_compress_inputs(
            x.data_ptr(), *weights, *places, stage.ape.shape[0], stage.rounds, torch.get_num_threads()
        )
        require(not failed, f"phases lie outside 0..{stage.ape.shape[0] - 1}.")
        return values, gates

    def feed_forward(self, x: Tensor, fixed_ids: Tensor | None, stage: ExpertStage) -> Tensor:
        """As `sublayers.Sublayers.feed_forward`."""
        gate, experts, width = self._of(stage, expert_addresses)
        _check(x, width, x.shape[1])
        tokens, chosen = x.shape[0], None
        if fixed_ids is not None:
            fits = tuple(fixed_ids.shape) == (tokens, stage.num_chosen) and fixed_ids.dtype == torch.int64
            require(fits, f"fixed ids are {fixed_ids.dtype} {list(fixed_ids.shape)}.")
            fixed_ids = fixed_ids.contiguous()
            chosen = fixed_ids.data_ptr()
        y = torch.empty_like(x)
        dims = (y.data_ptr(), tokens, stage.num_chosen, stage.scale, stage.limit)
        rule = (stage.rounds, stage.rounds_shared, stage.rounds_shared_inner, torch.get_num_threads())
        failed = self._twins.library.dsv4_feed_forward(x.data_ptr(), *gate, chosen, *experts, *dims, *rule)
        require(not failed, f"fixed_ids name an expert outside 0..{stage.experts.num_experts - 1}.")
        return y


def _check(x: Tensor, wanted: int, found: int) -> None:
    """Raises: ShapeError."""
    if x.dtype != torch.float32 or not x.is_contiguous() or x.device.type != "cpu":
        raise ShapeError(f"got {x.dtype} {list(x.shape)} on {x.device} but need contiguous float32 on cpu.")
    require(wanted == found, f"x has {found} channels but the weight takes {wanted}.")


def _angles(cos: Tensor, sin: Tensor, tokens: int) -> tuple[int, int]:
    for each in (cos, sin):
        fits = each.shape[0] == tokens and each.is_contiguous() and each.dtype == torch.float32
        require(fits, f"{each.dtype} angles {list(each.shape)} do not go with {tokens} tokens.")
    return cos.data_ptr(), sin.data_ptr()


def _vector(what: str, x: Tensor, *shape: int) -> int:
    fits = tuple(x.shape) == shape and x.dtype == torch.float32 and x.is_contiguous()
    require(fits, f"{what} is {x.dtype} {list(x.shape)} but must be contiguous float32 {list(shape)}.")
    return x.data_ptr()


def entry_addresses(spec: EnterSpec) -> Addresses:
    width = spec.norm.shape[0]
    n = spec.fn.shape[1] // width
    weights = (
        _vector("fn", spec.fn, (2 + n) * n, n * width),
        _vector("base", spec.base, (2 + n) * n),
        _vector("scale", spec.scale, 3),
        _vector("norm", spec.norm, width),
    )
    return weights, width


def query_addresses(stage: QueryStage) -> Addresses:
    wq_a, wq_b = descriptors.of_linear(stage.wq_a), descriptors.of_linear(stage.wq_b)
    fits = wq_b.columns == wq_a.rows and wq_b.rows % stage.num_heads == 0
    require(fits, f"wq_a gives {wq_a.rows} channels, but wq_b is {[wq_b.rows, wq_b.columns]}.")
    weights = (ctypes.byref(wq_a), _vector("norm", stage.norm, wq_a.rows), ctypes.byref(wq_b))
    return weights, wq_a.columns, wq_a.rows, wq_b.rows // stage.num_heads


def key_addresses(stage: KeyStage) -> Addresses:
    wkv = descriptors.of_linear(stage.wkv)
    return (ctypes.byref(wkv), _vector("norm", stage.norm, wkv.rows)), wkv.columns, wkv.rows


def output_addresses(stage: OutputStage) -> Addresses:
    wo_a, wo_b = descriptors.of_linear(stage.wo_a), descriptors.of_linear(stage.wo_b)
    fits = wo_a.rows % stage.num_groups == 0 and wo_b.columns == wo_a.rows
    require(fits, f"{stage.num_groups} groups of wo_a give {wo_a.rows} channels, but wo_b takes {wo_b.columns}.")
    return (ctypes.byref(wo_a), ctypes.byref(wo_b)), wo_a.columns * stage.num_groups, wo_b.rows


def _compress(stage: CompressStage) -> Addresses:
    wkv, wgate = descriptors.of_linear(stage.wkv), descriptors.of_linear(stage.wgate)
    fits = (wkv.rows, wkv.columns) == (wgate.rows, wgate.columns)
    require(fits, f"wkv is {[wkv.rows, wkv.columns]} but wgate {[wgate.rows, wgate.columns]}.")
    ape = _vector("ape", stage.ape, stage.ape.shape[0], wkv.rows)
    return (ctypes.byref(wkv), ctypes.byref(wgate), ape), wkv.columns, wkv.rows


def expert_addresses(stage: ExpertStage) -> Addresses:
    gate, (w1, w3, w2) = descriptors.of_linear(stage.gate), stage.shared
    shared = descriptors.of_linear(w1), descriptors.of_linear(w3), descriptors.of_linear(w2)
    descriptors.check(*shared)
    experts, count = descriptors.of_experts(stage.experts), stage.experts.num_experts
    fits = gate.rows == count and experts[0].columns == gate.columns and shared[0].columns == gate.columns
    require(fits, f"{count} experts of width {experts[0].columns} do not go with a gate {[gate.rows, gate.columns]}.")
    bias = None if stage.bias is None else _vector("bias", stage.bias, count)
    return (ctypes.byref(gate), bias), tuple(ctypes.byref(each) for each in (*experts, *shared)), gate.columns
