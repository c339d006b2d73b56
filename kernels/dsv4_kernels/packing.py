"""Weights as they lie in memory: the bytes of the checkpoint, in the order that the C++ twins read them in.

| format | order of the codes of a matrix | scales |
|---|---|---|
| bf16 | [rows / 4, columns / 32, 4 rows, 32]; of each 16, place 2d is column d and 2d + 1 is column 8 + d | none |
| fp8 | [rows / 4, columns / 64, 4 rows, 64]; place 16 j + 8 h + 2 i + b is 32 h + 4 j + i + 16 (1 - b) | as stored |
| mxfp4, nvfp4 | [rows / 8, columns / 8, 8 rows, 4 bytes] | [rows / 8, groups, 8 rows] |

Rows and columns are filled with zeros to whole tiles. The rows of a tile are multiplied together, so memory is read
from one end to the other, which its prefetchers follow: rows one behind the other come at half of that rate or less.
Nothing is lost: `unpack` gives back what the checkpoint holds, byte by byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from dsv4_kernels.errors import FormatError
from dsv4_kernels.formats import FP4_GROUPS, FP8_BLOCK, WeightFormat
from dsv4_kernels.memory import WEIGHTS

TILE = 8  # rows, and columns of FP4
QUAD = 4  # rows of the other formats
LINE = 64  # bytes of a row in a tile of QUAD rows
FP8_ORDER = [32 * h + 4 * j + i + 16 * (1 - b) for j in range(4) for h in (0, 1) for i in range(4) for b in (0, 1)]
FP8_PLACES = sorted(range(LINE), key=FP8_ORDER.__getitem__)  # its inverse
LARGEST_SCALE = 134  # UE8M0: the twins multiply by 2^(scale - 7), which must be a finite float
CODE_TYPE = {
    WeightFormat.FP32: torch.float32,
    WeightFormat.BF16: torch.bfloat16,
    WeightFormat.FP8: torch.float8_e4m3fn,
    WeightFormat.MXFP4: torch.uint8,
    WeightFormat.NVFP4: torch.uint8,
}
SCALE_TYPE = {
    WeightFormat.FP8: torch.uint8,
    WeightFormat.MXFP4: torch.uint8,
    WeightFormat.NVFP4: torch.float8_e4m3fn,
}
FORMATS = (WeightFormat.BF16, WeightFormat.FP8, WeightFormat.MXFP4, WeightFormat.NVFP4)


class Stored(Protocol):
    """What is needed of a `tensors.QuantTensor`."""

    @property
    def format(self) -> WeightFormat:
        """How elements are stored."""

    @property
    def codes(self) -> Tensor:
        """The elements."""

    @property
    def scales(self) -> Tensor | None:
        """Their scales."""

    @property
    def global_scale(self) -> float:
        """The scale of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedMatrices:
    """Matrices of one shape and format, one after the other.

    Shapes: codes, scales uint8 [E, bytes of a matrix]; globals float32 [E].
    """

    format: WeightFormat
    shape: tuple[int, int]
    codes: Tensor
    scales: Tensor
    globals: Tensor

    @classmethod
    def allocate(cls, format: WeightFormat, count: int, shape: tuple[int, int]) -> PackedMatrices:
        """Room for `count` matrices (out, in); values are zeros until `put`.

        Raises: FormatError if the format is not packed.
        """
        if format not in FORMATS:
            raise FormatError(f"{format.value} is not packed, only {', '.join(item.value for item in FORMATS)} are.")
        codes, scales = _sizes(format, shape)
        return cls(
            format=format,
            shape=shape,
            codes=WEIGHTS.bytes(count, codes),
            scales=WEIGHTS.bytes(count, scales),
            globals=torch.ones(count),
        )

    def put(self, index: int, stored: Stored) -> None:
        """Write one matrix.

        Raises: FormatError if it is stored in another way, or `is_packable` denies it.
        """
        if stored.format is not self.format or not is_packable(stored):
            raise FormatError(
                f"a {stored.format.value} matrix does not go among packed {self.format.value} ones: another format, "
                f"or it holds a code that is no number or a scale above 2^{LARGEST_SCALE - 127}."
            )
        codes = _bytes(stored.codes)
        match self.format:
            case WeightFormat.BF16:
                codes = _tiles(_pack_bf16(codes), LINE, QUAD)
            case WeightFormat.FP8:
                codes = _tiles(_pack_fp8(codes), LINE, QUAD)
            case _:
                codes = _tiles(codes, 4, TILE)
        self.codes[index] = codes.reshape(-1).view(torch.uint8)
        if stored.scales is not None:
            scales = _bytes(stored.scales)
            self.scales[index] = (_tiles(scales, 1, TILE) if self.format in FP4_GROUPS else scales).reshape(-1)
        self.globals[index] = stored.global_scale

    def unpack(self, index: int) -> tuple[Tensor, Tensor | None, float]:
        """Codes, scales and global scale in the order of the checkpoint. Shapes: [out, bytes], [out, groups] uint8."""
        rows, columns = self.shape
        codes, scales = self.codes[index], self.scales[index]
        match self.format:
            case WeightFormat.BF16:
                lines = _rows(codes.view(-1, _line_bytes(self.format, columns) // LINE, QUAD, LINE))[:rows]
                return _unpack_bf16(lines)[:, : 2 * columns], None, 1.0
            case WeightFormat.FP8:
                lines = _rows(codes.view(-1, _line_bytes(self.format, columns) // LINE, QUAD, LINE))[:rows]
                return _unpack_fp8(lines)[:, :columns], scales.view(-(-rows // FP8_BLOCK), -1), 1.0
        groups = columns // FP4_GROUPS[self.format]
        return (
            _rows(codes.view(-1, columns // TILE, TILE, 4))[:rows],
            _rows(scales.view(-1, groups, TILE, 1))[:rows],
            float(self.globals[index]),
        )

    @property
    def resident_bytes(self) -> int:
        """Bytes held in memory."""
        return self.codes.nbytes + self.scales.nbytes + self.globals.nbytes


def is_packable(stored: Stored) -> bool:
    """Whether the twins can read it packed: FP8 without codes that are no numbers, and with scales up to 2^7."""
    if stored.format not in FORMATS:
        return False
    if stored.format is not WeightFormat.FP8 or stored.scales is None or not stored.codes.numel():
        return True
    magnitudes = stored.codes.contiguous().view(torch.uint8) & 127
    return int(magnitudes.max()) < 127 and int(stored.scales.max()) <= LARGEST_SCALE


def _sizes(format: WeightFormat, shape: tuple[int, int]) -> tuple[int, int]:
    """Bytes of the codes and of the scales of one matrix."""
    rows, columns = shape
    if format in FP4_GROUPS:
        padded = -(-rows // TILE) * TILE
        return padded * columns // 2, padded * (columns // FP4_GROUPS[format])
    codes = -(-rows // QUAD) * QUAD * _line_bytes(format, columns)
    if format is WeightFormat.BF16:
        return codes, 0
    return codes, -(-rows // FP8_BLOCK) * -(-columns // FP8_BLOCK)


def _line_bytes(format: WeightFormat, columns: int) -> int:
    """Bytes of a row of BF16 or FP8."""
    return -(-columns * (2 if format is WeightFormat.BF16 else 1) // LINE) * LINE


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def _pack_bf16(codes: Tensor) -> Tensor:
    """Bytes [R, 2 K] in pairs, [R, bytes]."""
    halves = pad(codes, (0, -codes.shape[1] % LINE)).view(torch.int16)
    return halves.view(codes.shape[0], -1, 2, TILE).transpose(2, 3).reshape(codes.shape[0], -1).view(torch.uint8)


def _unpack_bf16(codes: Tensor) -> Tensor:
    """Bytes [R, bytes] back in the order of columns."""
    halves = codes.view(torch.int16).view(codes.shape[0], -1, TILE, 2)
    return halves.transpose(2, 3).reshape(codes.shape[0], -1).view(torch.uint8)


def _pack_fp8(codes: Tensor) -> Tensor:
    """Bytes [R, K] in lines, [R, bytes]."""
    padded = pad(codes, (0, -codes.shape[1] % LINE))
    return padded.view(codes.shape[0], -1, LINE)[:, :, FP8_ORDER].reshape(codes.shape[0], -1)


def _unpack_fp8(lines: Tensor) -> Tensor:
    return lines.view(lines.shape[0], -1, LINE)[:, :, FP8_PLACES].reshape(lines.shape[0], -1)


def _tiles(values: Tensor, width: int, height: int) -> Tensor:
    """[R, C] to [R / height, C / width, height, width], rows filled with zeros."""
    padded = pad(values, (0, 0, 0, -values.shape[0] % height))
    return padded.view(-1, height, padded.shape[1] // width, width).transpose(1, 2)


def _rows(tiles: Tensor) -> Tensor:
    """`_tiles` undone: [R / height, G, height, width] to [R, G * width]."""
    return tiles.transpose(1, 2).reshape(tiles.shape[0] * tiles.shape[2], -1)
