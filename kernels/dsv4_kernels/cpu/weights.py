"""Weights as the compiled library takes them: one descriptor each, made at the first use and kept beside the weight."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from dsv4_kernels.device_weights import DeviceWeight
from dsv4_kernels.errors import ShapeError, require
from dsv4_kernels.formats import WeightFormat
from dsv4_kernels.packing import PackedMatrices
from dsv4_kernels.prepared import ExpertWeights, LinearWeight, Stack

FORMAT_CODES = {name: code for code, name in enumerate(WeightFormat)}  # the order of packed.h
KEPT = "cpu"


class Descriptor(ctypes.Structure):
    """`Weight` of packed.h. It holds addresses: whoever keeps it keeps the tensors."""

    _fields_ = (
        *((name, c_void_p) for name in ("codes", "scales", "globals")),
        *((name, c_int64) for name in ("format", "rows", "columns", "code_bytes", "scale_bytes")),
    )


Triple = tuple[Descriptor, Descriptor, Descriptor]


def of_linear(weight: LinearWeight) -> Descriptor:
    """Return the descriptor of a weight."""
    kept = weight.kept.get(KEPT)
    if not isinstance(kept, Descriptor):
        kept = weight.kept[KEPT] = _packed(weight.packed) if weight.packed else _dense(weight.matrix().unsqueeze(0))
    return kept


def of_experts(experts: ExpertWeights) -> Triple:
    """Return the descriptors of w1, w3 and w2.

    Raises: ShapeError if they do not belong together.
    """
    kept = experts.kept.get(KEPT)
    if isinstance(kept, tuple):
        return kept
    w1, w3, w2 = (_stack(part) for part in (experts.w1, experts.w3, experts.w2))
    check(w1, w3, w2)
    experts.kept[KEPT] = (w1, w3, w2)
    return w1, w3, w2


def check(w1: Descriptor, w3: Descriptor, w2: Descriptor) -> None:
    """Refuse three matrices that are no expert. Raises: ShapeError."""
    inter, width = w1.rows, w1.columns
    for name, matrix, rows, columns in (("w3", w3, inter, width), ("w2", w2, width, inter)):
        found, wanted = [matrix.rows, matrix.columns], [rows, columns]
        require(found == wanted, f"{name} is {found} but must be {wanted} to go with w1.")


def _stack(part: Stack) -> Descriptor:
    if isinstance(part, DeviceWeight):
        raise ShapeError("experts that lie on a GPU cannot be read by the CPU's operators.")
    return _packed(part) if isinstance(part, PackedMatrices) else _dense(part)


def _dense(stack: Tensor) -> Descriptor:
    """Shapes: stack float32 [E, rows, columns]."""
    if stack.dtype != torch.float32 or stack.device.type != "cpu" or not stack.is_contiguous() or stack.dim() != 3:
        raise ShapeError(f"got {stack.dtype} {list(stack.shape)} on {stack.device} but need contiguous float32 on cpu.")
    rows, columns = stack.shape[1], stack.shape[2]
    return Descriptor(stack.data_ptr(), 0, 0, FORMAT_CODES[WeightFormat.FP32], rows, columns, 4 * rows * columns, 0)


def _packed(held: PackedMatrices) -> Descriptor:
    return Descriptor(
        held.codes.data_ptr(),
        held.scales.data_ptr(),
        held.globals.data_ptr(),
        FORMAT_CODES[held.format],
        *held.shape,
        held.codes.shape[1],
        held.scales.shape[1],
    )
