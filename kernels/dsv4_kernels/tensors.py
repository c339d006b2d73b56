"""Weights as they stand in a checkpoint (`QuantTensor`) and their exact values. `prepared.py` has what operators take.

QuantTensor ─ dequantise ─► float32 [out, in]          bit-exact, chunked: no large temporaries
float32     ─ quantise_* ─► QuantTensor                nearest even, saturating; what the checkpoint writer uses
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4_kernels import formats
from dsv4_kernels.errors import FormatError, require
from dsv4_kernels.packing import CODE_TYPE, SCALE_TYPE

WeightFormat = formats.WeightFormat
PACKED = formats.PACKED
FP8_BLOCK, MXFP4_GROUP, NVFP4_GROUP = formats.FP8_BLOCK, formats.MXFP4_GROUP, formats.NVFP4_GROUP
FP8_MAX = 448.0
FP4_MAX = 6.0
CHUNK_ELEMENTS = 1 << 20  # dequantising holds at most a few temporaries of this many elements


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantTensor:
    """One weight matrix as stored.

    Shapes: codes [out, in], or [out, in / 2] uint8 for FP4; scales [ceil(out / 128), ceil(in / 128)] for FP8,
            [out, in / 32] for MXFP4, [out, in / 16] for NVFP4, None otherwise.
    Rule:   UE8M0 scales are raw bytes s, worth 2^(s - 127). A packed byte holds the even column in its low nibble.
    Raises: FormatError if codes, scales and shape do not belong together.
    """

    format: WeightFormat
    codes: Tensor
    scales: Tensor | None = None
    global_scale: float = 1.0
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        codes, scales = code_shape(self.format, self.shape), scale_shape(self.format, self.shape)
        _match("codes", self.codes, codes, CODE_TYPE[self.format])
        if scales is None:
            if self.scales is not None:
                raise FormatError(
                    f"{self.format.value} has no scales, but a tensor {list(self.scales.shape)} came along."
                )
        elif self.scales is None:
            raise FormatError(f"{self.format.value} needs scales {list(scales)}, but none came along.")
        else:
            _match("scales", self.scales, scales, SCALE_TYPE[self.format])


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldRuns:
    """Runs of rows to be folded into running softmax states, in order.

    Shapes: begins, ends int64 [G]; offsets int64 [G + 1]; sources int64 [N], a row for each place.
    Rule:   run g folds the rows sources[offsets[g] : offsets[g + 1]] into state begins[g] (-1: an empty one), and
            stores it as state ends[g]; -1 there finishes an entry, and entries come out in the order of their runs.
            num_entries may say how many runs finish one: counting them would wait for a GPU.
    """

    begins: Tensor
    offsets: Tensor
    sources: Tensor
    ends: Tensor
    num_entries: int | None = None


def code_shape(format: WeightFormat, shape: tuple[int, int]) -> tuple[int, int]:
    """Shape of the stored codes of a matrix (out, in).

    Raises: FormatError if the format needs `in` to be a multiple of its group.
    """
    rows, columns = shape
    group = {WeightFormat.MXFP4: MXFP4_GROUP, WeightFormat.NVFP4: NVFP4_GROUP}.get(format, 1)
    if columns % group:
        raise FormatError(f"{format.value} matrix has {columns} columns but needs a multiple of {group}.")
    return (rows, columns // 2) if format in PACKED else (rows, columns)


def scale_shape(format: WeightFormat, shape: tuple[int, int]) -> tuple[int, int] | None:
    """Shape of the stored scales of a matrix (out, in); None where the format has none."""
    rows, columns = shape
    if format is WeightFormat.FP8:
        return -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)
    if format is WeightFormat.MXFP4:
        return rows, columns // MXFP4_GROUP
    if format is WeightFormat.NVFP4:
        return rows, columns // NVFP4_GROUP
    return None


def dequantise(q: QuantTensor) -> Tensor:
    """The matrix as float32 [out, in], bit-exact.

    Rule: FP8 and MXFP4 code * 2^(s - 127); NVFP4 code * (scale * global_scale), both products rounded to float32.
    """
    out = torch.empty(q.shape)
    dequantise_into(q, out)
    return out


def dequantise_into(q: QuantTensor, out: Tensor) -> None:
    """As `dequantise`, into a float32 [out, in] that already exists.

    Raises: ShapeError if `out` has another shape or type.
    """
    require(
        tuple(out.shape) == q.shape and out.dtype == torch.float32,
        f"target is {out.dtype} {list(out.shape)} but the weight is float32 {list(q.shape)}.",
    )
    rows, columns = q.shape
    step = max(1, CHUNK_ELEMENTS // max(1, columns))
    if q.format is WeightFormat.FP8:
        step = max(FP8_BLOCK, step // FP8_BLOCK * FP8_BLOCK)
    for first in range(0, rows, step):
        _dequantise_rows(q, first, min(rows, first + step), out[first : first + step])


def power_of_two(scale_bytes: Tensor) -> Tensor:
    """UE8M0 bytes s as float32 2^(s - 127), exact; 255 is NaN."""
    exponent = scale_bytes.to(torch.int32)
    bits = exponent << 23
    bits[exponent == 0] = 1 << 22  # 2^-127 is subnormal
    bits[exponent == 255] = 0x7FC00000
    return bits.view(torch.float32)


def quantise_fp8_block(weight: Tensor) -> QuantTensor:
    """e4m3 with one scale 2^ceil(log2(amax / 448)) per 128x128 block; a block of zeros has scale 1.

    Shapes: weight float32 [out, in].
    """
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % FP8_BLOCK, 0, -rows % FP8_BLOCK))
    blocks = padded.view(-1, FP8_BLOCK, padded.shape[1] // FP8_BLOCK, FP8_BLOCK)  # [R, 128, C, 128]
    scales = scale_bytes(blocks.abs().amax(dim=(1, 3)), FP8_MAX)
    codes = (blocks / power_of_two(scales)[:, None, :, None]).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    codes = codes.flatten(2, 3).flatten(0, 1)[:rows, :columns].contiguous()
    return QuantTensor(format=WeightFormat.FP8, codes=codes, scales=scales, shape=(rows, columns))


def quantise_mxfp4(weight: Tensor) -> QuantTensor:
    """Packed e2m1 with one scale 2^ceil(log2(amax / 6)) per 32 columns; a group of zeros has scale 1.

    Shapes: weight float32 [out, in], in a multiple of 32.
    """
    rows, columns = weight.shape
    groups = weight.reshape(rows, -1, MXFP4_GROUP)
    scales = scale_bytes(groups.abs().amax(dim=2), FP4_MAX)
    codes = e2m1_codes(groups / power_of_two(scales).unsqueeze(2)).flatten(1, 2)
    return QuantTensor(format=WeightFormat.MXFP4, codes=pack_nibbles(codes), scales=scales, shape=(rows, columns))


def quantise_nvfp4(weight: Tensor, global_scale: float | None = None) -> QuantTensor:
    """Packed e2m1, e4m3 scales amax / (6 * global) per 16 columns, and a float32 global scale amax / (6 * 448).

    Shapes: weight float32 [out, in], in a multiple of 16.
    Rule:   a given global_scale is used as it stands (w1 and w3 of an expert share one).
    """
    rows, columns = weight.shape
    if global_scale is None:
        amax = float(weight.abs().amax()) if weight.numel() else 0.0
        global_scale = float(torch.tensor(amax / (FP4_MAX * FP8_MAX) or 1.0, dtype=torch.float32))
    groups = weight.reshape(rows, -1, NVFP4_GROUP)
    scales = (groups.abs().amax(dim=2) / FP4_MAX / global_scale).clamp(max=FP8_MAX).to(torch.float8_e4m3fn)
    factor = scales.to(torch.float32) * torch.tensor(global_scale, dtype=torch.float32)
    scaled = torch.where(factor.unsqueeze(2) == 0, 0.0, groups / factor.unsqueeze(2))
    return QuantTensor(
        format=WeightFormat.NVFP4,
        codes=pack_nibbles(e2m1_codes(scaled).flatten(1, 2)),
        scales=scales,
        global_scale=global_scale,
        shape=(rows, columns),
    )


def scale_bytes(amax: Tensor, largest: float) -> Tensor:
    """UE8M0 byte of the smallest power of two s with amax <= largest * s; 127 (s = 1) where amax is 0.

    Rule: powers of two do not round up; the byte is held within 0..254.
    """
    bits = (amax / largest).view(torch.int32)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(torch.int32)
    exponent = torch.where(bits <= 1 << 22, 0, exponent)  # byte 0 is the subnormal 2^-127
    return torch.where(amax == 0, 127, exponent.clamp(0, 254)).to(torch.uint8)


def e2m1_codes(values: Tensor) -> Tensor:
    """Nearest e2m1 code (sign << 3 | magnitude index) of each float32, ties to the even index, saturating; uint8."""
    magnitude = values.abs()
    code = torch.zeros_like(values, dtype=torch.uint8)
    code += magnitude > 0.25
    code += magnitude >= 0.75
    code += magnitude > 1.25
    code += magnitude >= 1.75
    code += magnitude > 2.5
    code += magnitude >= 3.5
    code += magnitude > 5.0
    return code | (torch.signbit(values).to(torch.uint8) << 3)


def e2m1_values(codes: Tensor) -> Tensor:
    """The float32 value of each e2m1 code."""
    magnitudes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    return torch.cat([magnitudes, -magnitudes])[codes.to(torch.int32)]


def pack_nibbles(codes: Tensor) -> Tensor:
    """Codes [R, K] to bytes [R, K / 2], the even column in the low nibble."""
    pairs = codes.reshape(codes.shape[0], -1, 2)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).contiguous()


def _match(what: str, tensor: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        found = f"{tensor.dtype} {list(tensor.shape)}"
        raise FormatError(f"{what} are {found} but the matrix needs {dtype} {list(shape)}.")


def _dequantise_rows(q: QuantTensor, first: int, last: int, out: Tensor) -> None:
    """Rows [first, last) of q into out; for FP8 `first` is a multiple of 128."""
    codes = q.codes[first:last]
    if q.format not in PACKED:
        out.copy_(codes)  # e4m3 and bf16 convert exactly
    else:
        _unpack_into(codes, out)
    if q.scales is None:
        return
    if q.format is WeightFormat.FP8:
        scales = power_of_two(q.scales[first // FP8_BLOCK : -(-last // FP8_BLOCK)])
        wide = scales.repeat_interleave(FP8_BLOCK, dim=1)[:, : q.shape[1]]
        for block, line in enumerate(wide):
            out[block * FP8_BLOCK : (block + 1) * FP8_BLOCK].mul_(line)
        return
    scales = q.scales[first:last]
    if q.format is WeightFormat.MXFP4:
        factor = power_of_two(scales)
    else:
        factor = scales.to(torch.float32) * torch.tensor(q.global_scale, dtype=torch.float32)
    out.view(*factor.shape, -1).mul_(factor.unsqueeze(2))


def _unpack_into(codes: Tensor, out: Tensor) -> None:
    """Packed e2m1 bytes [R, K / 2] to float32 [R, K], low nibble first."""
    table = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    values = torch.cat([table, -table])
    pairs = out.view(out.shape[0], -1, 2)  # [R, K / 2, 2]
    pairs[:, :, 0] = values[(codes & 15).to(torch.int32)]
    pairs[:, :, 1] = values[(codes >> 4).to(torch.int32)]
