"""Weights as the GPU kernels read them: the checkpoint's bytes, matrices of groups or experts one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dsv4_kernels.errors import FormatError, require
from dsv4_kernels.formats import FP4_GROUPS, FP8_BLOCK, PACKED, WeightFormat
from dsv4_kernels.packing import CODE_TYPE, SCALE_TYPE, Stored
from dsv4_kernels.triton_lang.launch import Device


class StoredMatrix(Stored, Protocol):
    """What is needed of a `tensors.QuantTensor`."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceWeight:
    """One matrix, or one for each of G groups or experts stacked along the rows.

    Shapes: codes [G * N, K] or [G * N, K / 2]; scales as `QuantTensor` for G * N rows; alphas [G] float32, what the
            product of group g is multiplied by (NVFP4's global scales; None is 1); token_alphas times input_scale.
    Rule:   input_scale is NVFP4's global scale of the tokens; 0 leaves tokens in bf16 (W4A16).
    """

    format: WeightFormat
    codes: Tensor
    scales: Tensor
    alphas: Tensor | None
    num_groups: int
    token_alphas: Tensor | None = None
    input_scale: float = 0.0

    @classmethod
    def allocate(
        cls, format: WeightFormat, num_groups: int, shape: tuple[int, int], device: torch.device
    ) -> DeviceWeight:
        """Room for one matrix (out, in) per group; its values are undefined until `put`.

        Raises: ShapeError where FP8 scales of two groups would share a block.
        """
        rows, columns = shape
        require(
            stacks(format, num_groups, rows), f"FP8 matrices of {rows} rows do not stack: {FP8_BLOCK} share a scale."
        )
        wide = columns // 2 if format in PACKED else columns
        codes = torch.empty(num_groups * rows, wide, dtype=CODE_TYPE[format], device=device)
        scales = codes
        if format is WeightFormat.FP8:
            blocks = -(-num_groups * rows // FP8_BLOCK), -(-columns // FP8_BLOCK)
            scales = torch.empty(blocks, dtype=torch.uint8, device=device)
        elif format in FP4_GROUPS:
            shape = num_groups * rows, columns // FP4_GROUPS[format]
            scales = torch.empty(shape, dtype=SCALE_TYPE[format], device=device)
        is_nv = format is WeightFormat.NVFP4
        alphas = torch.ones(num_groups, device=device) if is_nv else None
        return cls(format=format, codes=codes, scales=scales, alphas=alphas, num_groups=num_groups)

    def put(self, group: int, stored: StoredMatrix) -> None:
        """Copy one matrix to its place.

        Raises: FormatError if it is stored in another way or has another shape.
        """
        if stored.format is not self.format or tuple(stored.shape) != self.shape:
            raise FormatError(
                f"a {stored.format.value} matrix {list(stored.shape)} does not go among {self.format.value} ones "
                f"{list(self.shape)}."
            )
        _part(self.codes, group, self.num_groups).copy_(stored.codes)
        if stored.scales is not None:
            _part(self.scales, group, self.num_groups).copy_(stored.scales)
        if self.alphas is not None:
            self.alphas[group] = stored.global_scale

    @property
    def num_rows(self) -> int:
        """N, of one group."""
        return self.codes.shape[0] // self.num_groups

    @property
    def num_columns(self) -> int:
        """K."""
        return self.codes.shape[1] * (2 if self.format in PACKED else 1)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of one group."""
        return self.num_rows, self.num_columns

    @property
    def resident_bytes(self) -> int:
        """Bytes held on the device."""
        held = {id(each): each.nbytes for each in (self.codes, self.scales, self.alphas) if each is not None}
        return sum(held.values())

    def multiplied(self, device: Device) -> str:
        """The format of `device/accumulate.py` that this architecture multiplies the weight in."""
        kind = {WeightFormat.FP8: "fp8", WeightFormat.MXFP4: "mxfp4", WeightFormat.NVFP4: "nvfp4"}.get(self.format)
        if kind == "nvfp4" and self.input_scale == 0.0:
            kind = "nvfp4_a16"
        return device.arch.formats[kind or "dense"]

    def factors(self, device: Device) -> Tensor | None:
        """What products are multiplied by: with the tokens' scale where tokens are NVFP4."""
        return self.token_alphas if self.multiplied(device) == "nvfp4" else self.alphas


def stacks(format: WeightFormat, num_groups: int, rows: int) -> bool:
    """Whether matrices of so many rows may stand one below the other: FP8 shares a scale among FP8_BLOCK rows."""
    return format is not WeightFormat.FP8 or num_groups <= 1 or rows % FP8_BLOCK == 0


def dense_weight(matrix: Tensor, num_groups: int = 1) -> DeviceWeight:
    """float32 or bf16 rows [G * N, K]."""
    is_wide = matrix.dtype == torch.float32
    format = WeightFormat.FP32 if is_wide else WeightFormat.BF16
    matrix = matrix.contiguous()
    return DeviceWeight(format=format, codes=matrix, scales=matrix, alphas=None, num_groups=num_groups)


def quantised_weight(parts: Sequence[StoredMatrix], input_scale: float = 0.0, num_groups: int = 0) -> DeviceWeight:
    """Stack the matrices of groups or experts, all of one format and shape, on the device that holds them.

    Rule: num_groups may be given where one tensor holds the rows of several groups (`wo_a`).
    """
    first = parts[0]
    require(
        all(one.format is first.format and one.shape == first.shape for one in parts),
        f"stacked weights must all be {first.format.value} {list(first.shape)}.",
    )
    if first.scales is None:
        return dense_weight(torch.cat([one.codes for one in parts]), num_groups or len(parts))
    count = max(len(parts), num_groups)
    rows = first.shape[0] // max(1, num_groups)
    require(
        stacks(first.format, count, rows),
        f"stacked FP8 weights need a multiple of {FP8_BLOCK} rows each but have {rows}.",
    )
    is_nv = first.format is WeightFormat.NVFP4
    globals_ = torch.tensor([one.global_scale for one in parts], dtype=torch.float32, device=first.codes.device)
    return DeviceWeight(
        format=first.format,
        codes=torch.cat([one.codes for one in parts]) if len(parts) > 1 else first.codes,
        scales=torch.cat([one.scales for one in parts if one.scales is not None]),
        alphas=globals_ if is_nv else None,
        token_alphas=globals_ * input_scale if is_nv else None,
        num_groups=num_groups or len(parts),
        input_scale=input_scale if is_nv else 0.0,
    )


def _part(stack: Tensor, group: int, num_groups: int) -> Tensor:
    rows = stack.shape[0] // num_groups
    return stack[group * rows : (group + 1) * rows]
