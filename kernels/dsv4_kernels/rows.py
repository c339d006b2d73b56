"""How one row of a cache is stored, as data. No torch: the page bookkeeping counts bytes with it.

| format | one row of `width` channels | bytes at the released widths |
|---|---|---|
| fp32, bf16 | the channels | 2048, 1024 (index keys: 512, 256) |
| packed | (width - rope_dim) e4m3 codes; one UE8M0 scale per 64 of them, padded to 8 bytes; rope_dim bf16 | 584 |
| fp8 | width e4m3 codes, one float32 scale, a power of two | 132 |
| fp4 | width e2m1 codes, two to a byte, the lower channel in the low bits; one UE8M0 scale per 32 | 68 |

Source: shared facts `deepseek_v4.md` 2.11. No padding of rows or pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

PACKED_GROUP = 64
FP4_GROUP = 32
SCALE_PADDING = 8


class RowFormat(str, Enum):
    """How the channels of a row are stored."""

    FP32 = "fp32"
    BF16 = "bf16"
    PACKED = "packed"
    FP8 = "fp8"
    FP4 = "fp4"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpec:
    """One row. Rule: rope_dim is the number of last channels that PACKED keeps in bf16; the other formats ignore it."""

    format: RowFormat
    width: int
    rope_dim: int = 0

    @property
    def num_codes(self) -> int:
        """Channels that PACKED stores as e4m3."""
        return self.width - self.rope_dim

    @property
    def scale_bytes(self) -> int:
        """Bytes of PACKED's scales with their padding."""
        groups = -(-self.num_codes // PACKED_GROUP)
        return -(-groups // SCALE_PADDING) * SCALE_PADDING

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return {
            RowFormat.FP32: 4 * self.width,
            RowFormat.BF16: 2 * self.width,
            RowFormat.PACKED: self.num_codes + self.scale_bytes + 2 * self.rope_dim,
            RowFormat.FP8: self.width + 4,
            RowFormat.FP4: -(-self.width // 2) + -(-self.width // FP4_GROUP),
        }[self.format]
