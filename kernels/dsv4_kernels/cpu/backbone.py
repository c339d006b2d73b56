"""All layers of a planned step as one call of the compiled library, and its logits as another (backbone.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_double, c_int64, c_void_p

import torch
from torch import Tensor

from dsv4_kernels.cpu.layers import FAILURES, Described, HyperFields, WeightPointer, fields_of, reals, weight_pointer
from dsv4_kernels.cpu.plan import PlannedStep
from dsv4_kernels.cpu.table import CpuOps
from dsv4_kernels.errors import ShapeError
from dsv4_kernels.groups import BackboneStage

KINDS = ("window", "csa", "hca")


class _Backbone(ctypes.Structure):
    _fields_ = (
        *fields_of(c_void_p, "layers kinds ropes frequencies embed"),
        *fields_of(c_int64, "num_layers num_ropes rotated vocabulary width streams csa_ratio"),
    )


class _Head(ctypes.Structure):
    _fields_ = (
        ("hyper", HyperFields),
        ("weight", WeightPointer),
        *fields_of(c_int64, "streams width rounds"),
        *fields_of(c_double, "norm_eps hc_eps"),
    )


class CpuBackbone:
    """One model's layers from its tokens on, and its head. Threads: as many as torch uses in the calling thread."""

    def __init__(self, twins: CpuOps, stage: BackboneStage, layers: Sequence[Described]) -> None:
        """layers: those of the stage as `CpuLayers.layer` describes them. Raises: ShapeError."""
        self._twins = twins
        self._layers = tuple(layers)
        self._stage = stage
        self._addresses = _addresses(layers)
        self._kinds = (c_int64 * len(layers))(*(KINDS.index(kind) for kind in stage.kinds))
        self._ropes = (c_int64 * len(layers))(*stage.ropes)
        vocabulary, width = stage.embed.shape
        num_streams = stage.fn.shape[0]
        self._fields = _Backbone(
            ctypes.addressof(self._addresses),
            ctypes.addressof(self._kinds),
            ctypes.addressof(self._ropes),
            reals(stage.frequencies, -1, -1),
            reals(stage.embed, -1, -1),
            len(layers),
            stage.frequencies.shape[0],
            2 * stage.frequencies.shape[1],
            vocabulary,
            width,
            num_streams,
            stage.csa_ratio,
        )
        hyper = HyperFields(
            reals(stage.fn, num_streams, num_streams * width), reals(stage.base), reals(stage.scale), reals(stage.norm)
        )
        weight = weight_pointer(stage.head)
        self._head = _Head(hyper, weight, num_streams, width, stage.rounds, stage.norm_eps, stage.hc_eps)
        self._shape = num_streams, width
        self._num_logits = weight.contents.rows

    def memories(self, memories: Sequence[Described]) -> Described:
        """Describe what all layers keep, one after the other."""
        return Described(_addresses(memories), tuple(memories))

    def run(self, memories: Described, planned: PlannedStep) -> Tensor:
        """Compute all layers and keep what later steps need. Shapes: returns the streams [T, N, d].

        Raises: ShapeError for a token id or a row that lies outside.
        """
        fields = planned.fields
        out = torch.empty(fields.num_tokens, *self._shape)
        failed = self._twins.library.dsv4_backbone(
            ctypes.byref(self._fields),
            ctypes.byref(memories.fields),
            ctypes.byref(fields),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        if failed:
            raise ShapeError(FAILURES[failed])
        return out

    def logits(self, streams: Tensor) -> Tensor:
        """Join the streams and apply the head. Shapes: streams [T, N, d]; returns [T, V]. Raises: ShapeError."""
        count = streams.shape[0]
        out = torch.empty(count, self._num_logits)
        address = reals(streams, -1, *self._shape)
        self._twins.library.dsv4_head(ctypes.byref(self._head), address, out.data_ptr(), count, torch.get_num_threads())
        return out


def _addresses(described: Sequence[Described]) -> ctypes.Array[c_void_p]:
    return (c_void_p * len(described))(*(ctypes.addressof(each.fields) for each in described))
