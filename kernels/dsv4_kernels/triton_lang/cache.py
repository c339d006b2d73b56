"""Storing values as cache rows."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4_kernels.cache import CacheRows
from dsv4_kernels.errors import require
from dsv4_kernels.rows import FP4_GROUP, PACKED_GROUP, RowFormat, RowSpec
from dsv4_kernels.triton_lang.device import rows as kernels
from dsv4_kernels.triton_lang.launch import Device, ceil_div, new, power_of_two_at_least

ROWS_PER_PROGRAM = 16


def pack_rows(device: Device, values: Tensor, spec: RowSpec) -> CacheRows:
    """As `ops.PackRows`; the plain casts are torch's."""
    require(
        values.dim() == 2 and values.shape[1] == spec.width, f"values are {list(values.shape)}, rows {spec.width} wide."
    )
    values = values.contiguous()
    if spec.format in (RowFormat.FP32, RowFormat.BF16):
        wide = values.to(torch.float32 if spec.format is RowFormat.FP32 else torch.bfloat16)
        return CacheRows(wide.contiguous().view(torch.uint8), spec)
    count = values.shape[0]
    data = new(values, count, spec.row_bytes, dtype=torch.uint8)
    width, group, scale_at, num_scales = _layout(spec)
    padded = spec.scale_bytes if spec.format is RowFormat.PACKED else num_scales
    device(
        kernels.pack_groups,
        (ceil_div(count, ROWS_PER_PROGRAM), padded),
        *(values, data, count, spec.width),
        ROW_BYTES=spec.row_bytes,
        WIDTH=width,
        GROUP=group,
        SCALE_AT=scale_at,
        NUM_SCALES=num_scales,
        KIND=spec.format.value,
        BLOCK_R=ROWS_PER_PROGRAM,
        BLOCK_D=power_of_two_at_least(group),
    )
    if spec.format is RowFormat.PACKED and spec.rope_dim:
        device(
            kernels.copy_tail,
            (ceil_div(count, ROWS_PER_PROGRAM),),
            *(values, data, count, spec.width),
            FIRST=width,
            COUNT=spec.rope_dim,
            AT=width + spec.scale_bytes,
            ROW_BYTES=spec.row_bytes,
            BLOCK_R=ROWS_PER_PROGRAM,
            BLOCK_D=power_of_two_at_least(spec.rope_dim),
        )
    return CacheRows(data, spec)


def _layout(spec: RowSpec) -> tuple[int, int, int, int]:
    """Channels that are stored as codes, channels per scale, first byte and number of the scales."""
    if spec.format is RowFormat.FP8:
        return spec.width, spec.width, spec.width, 1
    if spec.format is RowFormat.FP4:
        return spec.width, FP4_GROUP, ceil_div(spec.width, 2), ceil_div(spec.width, FP4_GROUP)
    return spec.num_codes, PACKED_GROUP, spec.num_codes, ceil_div(spec.num_codes, PACKED_GROUP)
