"""How the elements of a weight are stored."""

from __future__ import annotations

from enum import Enum

FP8_BLOCK = 128  # rows and columns of one FP8 scale
MXFP4_GROUP = 32
NVFP4_GROUP = 16


class WeightFormat(str, Enum):
    """How the elements of a weight are stored."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP8 = "fp8"  # e4m3 with one UE8M0 scale byte per 128x128 block
    MXFP4 = "mxfp4"  # packed e2m1, one UE8M0 scale byte per 32 columns
    NVFP4 = "nvfp4"  # packed e2m1, one e4m3 scale per 16 columns, times a float32 scale of the tensor


PACKED = (WeightFormat.MXFP4, WeightFormat.NVFP4)
FP4_GROUPS = {WeightFormat.MXFP4: MXFP4_GROUP, WeightFormat.NVFP4: NVFP4_GROUP}
