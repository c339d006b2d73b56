"""The round trip that the input of a product makes."""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

from torch import Tensor

FP8_GROUP = 128  # channels that share a scale
INT8_GROUP = 32


class Trip(IntEnum):
    """What a row is rounded to before it is multiplied; the numbers are those of cpu/rounding.h."""

    NONE = 0
    FP8 = 1
    INT8 = 2


class RoundTrip(Protocol):
    """`ops.Fp8RoundTrip` or `ops.Int8RoundTrip`."""

    def __call__(self, x: Tensor, group: int) -> Tensor:
        """Shapes: x [..., D]; returns as x."""


class RoundTrips(Protocol):
    """Whoever has both, as `ops.OpTable`."""

    @property
    def fp8_round_trip(self) -> RoundTrip:
        """Round to e4m3 and back."""

    @property
    def int8_round_trip(self) -> RoundTrip:
        """Round to int8 and back."""


def make_trip(ops: RoundTrips, x: Tensor, trip: Trip) -> Tensor:
    """Round the input of a product. Shapes: x [..., D]; returns as x."""
    if trip == Trip.NONE:
        return x
    return ops.int8_round_trip(x, INT8_GROUP) if trip == Trip.INT8 else ops.fp8_round_trip(x, FP8_GROUP)
