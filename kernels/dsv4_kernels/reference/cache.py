"""Storing values as cache rows, and what stored rows are worth."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4_kernels.cache import CacheRows
from dsv4_kernels.reference.round_trip import FP4_FLOOR, FP8_FLOOR
from dsv4_kernels.rows import FP4_GROUP, PACKED_GROUP, RowFormat, RowSpec
from dsv4_kernels.tensors import FP4_MAX, FP8_MAX, e2m1_codes, e2m1_values, pack_nibbles, power_of_two, scale_bytes


def pack_rows(values: Tensor, spec: RowSpec) -> CacheRows:
    """As `ops.PackRows`."""
    if spec.format is RowFormat.FP32:
        return CacheRows(values.contiguous().view(torch.uint8), spec)
    if spec.format is RowFormat.BF16:
        return CacheRows(_bf16(values), spec)
    if spec.format is RowFormat.FP8:
        scale = power_of_two(scale_bytes(values.abs().amax(1, keepdim=True).clamp(min=FP8_FLOOR), FP8_MAX))  # [N, 1]
        return CacheRows(torch.cat([_e4m3(values / scale), scale.view(torch.uint8)], 1), spec)
    if spec.format is RowFormat.FP4:
        groups, scales = _grouped(values, FP4_GROUP, FP4_FLOOR, FP4_MAX)
        codes = _padded(e2m1_codes(groups).flatten(1)[:, : spec.width], spec.width % 2)
        return CacheRows(torch.cat([pack_nibbles(codes), scales], 1), spec)
    groups, scales = _grouped(values[:, : spec.num_codes], PACKED_GROUP, FP8_FLOOR, FP8_MAX)
    codes = _e4m3(groups.flatten(1)[:, : spec.num_codes])
    scales = _padded(scales, spec.scale_bytes - scales.shape[1])
    return CacheRows(torch.cat([codes, scales, _bf16(values[:, spec.num_codes :])], 1), spec)


def unpack_rows(cache: CacheRows, rows: Tensor) -> Tensor:
    """Return what stored rows are worth, exactly. Shapes: rows int64 [N]; returns float32 [N, width]."""
    spec, data = cache.spec, cache.data[rows]
    if spec.format is RowFormat.FP32:
        return data.view(torch.float32)
    if spec.format is RowFormat.BF16:
        return data.view(torch.bfloat16).float()
    if spec.format is RowFormat.FP8:
        return data[:, : spec.width].view(torch.float8_e4m3fn).float() * data[:, spec.width :].view(torch.float32)
    if spec.format is RowFormat.FP4:
        split = -(-spec.width // 2)
        nibbles = torch.stack([data[:, :split] & 15, data[:, :split] >> 4], 2).flatten(1)[:, : spec.width]
        return e2m1_values(nibbles) * _spread(data[:, split:], FP4_GROUP, spec.width)
    scales = data[:, spec.num_codes : spec.num_codes + spec.scale_bytes]
    codes = data[:, : spec.num_codes].contiguous().view(torch.float8_e4m3fn).float()
    rope = data[:, spec.num_codes + spec.scale_bytes :].contiguous().view(torch.bfloat16).float()
    return torch.cat([codes * _spread(scales, PACKED_GROUP, spec.num_codes), rope], 1)


def _bf16(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16).contiguous().view(torch.uint8)


def _e4m3(values: Tensor) -> Tensor:
    return values.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).view(torch.uint8)


def _padded(columns: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(columns, (0, count))


def _grouped(values: Tensor, group: int, floor: float, largest: float) -> tuple[Tensor, Tensor]:
    """Values over their group's scale [N, G, group], the last group filled with zeros, and the scale bytes [N, G]."""
    groups = _padded(values, -values.shape[1] % group).view(values.shape[0], -1, group)
    scales = scale_bytes(groups.abs().amax(2).clamp(min=floor), largest)
    return groups / power_of_two(scales)[:, :, None], scales


def _spread(scales: Tensor, group: int, width: int) -> Tensor:
    """The scale of each channel. Shapes: scales uint8 [N, G]; returns [N, width]."""
    return power_of_two(scales).repeat_interleave(group, 1)[:, :width]
