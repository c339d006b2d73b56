"""Weights in the forms that operators take; opaque to the model. `placement.py` makes them.

QuantTensor ─ prepare_linear ─► LinearWeight           packed as stored (packing.py), float32 if that is stored
            ─ ExpertWeights.put ─► one expert's slice  allocated once, filled in place
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from dsv4_kernels.device_weights import DeviceWeight
from dsv4_kernels.errors import FormatError, ShapeError, require
from dsv4_kernels.formats import WeightFormat
from dsv4_kernels.packing import CODE_TYPE, FORMATS, SCALE_TYPE, PackedMatrices, is_packable
from dsv4_kernels.tensors import QuantTensor, dequantise, dequantise_into

ExpertPart = Literal["w1", "w2", "w3"]
Stack = Tensor | PackedMatrices | DeviceWeight


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearWeight:
    """A weight prepared for `linear` and its kin: a float32 matrix, one packed matrix, or one on a GPU.

    Shapes: dense float32 [N, K], contiguous.
    Rule:   exactly one of the three is there. `kept` is what a table of operators made of it once, by the table's name.
    """

    dense: Tensor | None = None
    packed: PackedMatrices | None = None
    placed: DeviceWeight | None = None
    kept: dict[str, object] = field(default_factory=dict, compare=False, repr=False)

    def matrix(self) -> Tensor:
        """Return the weight as float32 [N, K], exact; packed ones are unpacked anew each time.

        Raises: FormatError for one on a GPU, which only the kernels there read.
        """
        return self.dense if self.packed is None and self.dense is not None else _unpacked(self.packed, 0)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        if self.placed is not None:
            return self.placed.codes.shape[0], self.placed.num_columns
        if self.packed is not None:
            return self.packed.shape
        rows, columns = self.matrix().shape
        return rows, columns

    @property
    def resident_bytes(self) -> int:
        """Bytes held in memory."""
        held = self.placed or self.packed
        return self.matrix().nbytes if held is None else held.resident_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWeights:
    """All routed experts of a layer (on this rank), allocated once and filled expert by expert.

    Shapes: w1, w3 [E, inter, hidden]; w2 [E, hidden, inter]; float32, contiguous, or packed, or on a GPU.
    Rule:   `kept` as in `LinearWeight`.
    """

    w1: Stack
    w2: Stack
    w3: Stack
    kept: dict[str, object] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def allocate(
        cls, num_experts: int, hidden: int, inter: int, format: WeightFormat = WeightFormat.FP32
    ) -> ExpertWeights:
        """Room for every expert; values are undefined until `put`. Packed room takes matrices of its format only."""

        def room(rows: int, columns: int) -> Stack:
            if format in FORMATS:
                return PackedMatrices.allocate(format, num_experts, (rows, columns))
            return torch.empty(num_experts, rows, columns)

        return cls(w1=room(inter, hidden), w2=room(hidden, inter), w3=room(inter, hidden))

    def put(self, expert: int, part: ExpertPart, q: QuantTensor) -> None:
        """Write one projection of one expert.

        Raises: ShapeError if the expert does not exist or the matrix has another shape.
        """
        target = self._part(part)
        if not 0 <= expert < self.num_experts:
            raise ShapeError(f"expert {expert} does not exist: this layer holds 0..{self.num_experts - 1}.")
        if isinstance(target, Tensor):
            dequantise_into(q, target[expert])
        else:
            require(q.shape == target.shape, f"target is {list(target.shape)} but the weight is {list(q.shape)}.")
            target.put(expert, widened(q, target.format) if isinstance(target, DeviceWeight) else q)

    def matrix(self, expert: int, part: ExpertPart) -> Tensor:
        """Return one projection as float32, exact. Shapes: [out, in]. Raises: FormatError for one on a GPU."""
        held = self._part(part)
        if isinstance(held, Tensor):
            return held[expert]
        return _unpacked(held if isinstance(held, PackedMatrices) else None, expert)

    def _part(self, part: ExpertPart) -> Stack:
        return {"w1": self.w1, "w2": self.w2, "w3": self.w3}[part]

    @property
    def num_experts(self) -> int:
        """How many experts there is room for."""
        if isinstance(self.w1, DeviceWeight):
            return self.w1.num_groups
        return self.w1.shape[0] if isinstance(self.w1, Tensor) else self.w1.codes.shape[0]

    @property
    def resident_bytes(self) -> int:
        """Bytes held in memory."""
        parts = (self.w1, self.w2, self.w3)
        return sum(part.nbytes if isinstance(part, Tensor) else part.resident_bytes for part in parts)


def prepare_linear(q: QuantTensor) -> LinearWeight:
    """The form that operators take. Copies nothing where a float32 matrix already is that form.

    Rule: what the twins cannot read packed (`packing.is_packable`) becomes float32.
    """
    if q.format is WeightFormat.FP32 and q.codes.is_contiguous():
        return LinearWeight(dense=q.codes)
    if not is_packable(q):
        return LinearWeight(dense=dequantise(q))
    packed = PackedMatrices.allocate(q.format, 1, q.shape)
    packed.put(0, q)
    return LinearWeight(packed=packed)


def widened(q: QuantTensor, format: WeightFormat) -> QuantTensor:
    """The same values as BF16 or FP32 where that is what is kept; BF16 holds FP8 values times their scales."""
    if q.format is format or format not in (WeightFormat.BF16, WeightFormat.FP32):
        return q
    return QuantTensor(format=format, codes=dequantise(q).to(CODE_TYPE[format]), shape=q.shape)


def _unpacked(packed: PackedMatrices | None, index: int) -> Tensor:
    if packed is None:
        raise FormatError("the weight holds no matrix on this side. Make it with prepare_linear.")
    codes, scales, global_scale = packed.unpack(index)
    scale_type = SCALE_TYPE.get(packed.format)
    return dequantise(
        QuantTensor(
            format=packed.format,
            codes=codes.contiguous().view(CODE_TYPE[packed.format]),
            scales=None if scales is None or scale_type is None else scales.contiguous().view(scale_type),
            global_scale=global_scale,
            shape=packed.shape,
        )
    )
