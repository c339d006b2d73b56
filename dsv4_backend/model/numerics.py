"""Where the round trips of quantisation-aware training stand.

`Numerics.TRAINED` repeats what DeepSeek's reference does (later revision), in fp32 between the round trips:

| value | round trip |
|---|---|
| input of a linear whose weight is stored as FP8 or FP4, routed experts included | FP8, groups of 128 channels |
| input of the router, compressors, weights_proj, wo_a, head | none |
| window keys and compressed entries, channels without position | FP8, groups of 64 channels |
| index queries and index keys | Hadamard, then FP4 in groups of 32 |

`Numerics.W4A8` does the same, but the input of a linear whose weight is stored as FP4 is rounded to int8, in groups of
32 channels: closer to the unrounded value than FP8 (0.5 % instead of 2.6 %) and faster on a CPU, but not what the model
saw in training. `Numerics.PLAIN` does none of it. A BF16 checkpoint keeps the cache and index round trips under
TRAINED, because they are part of the model; only the linear inputs follow the weight's format.
Source: shared facts `deepseek_v4.md` 2.5-2.8, 3.2.
"""

from __future__ import annotations

import torch
from dsv4_kernels.formats import PACKED, WeightFormat
from dsv4_kernels.ops import OpTable
from dsv4_kernels.trips import FP8_GROUP, INT8_GROUP, Trip, make_trip
from torch import Tensor

from dsv4_backend.config import Numerics
from dsv4_backend.model.weights import Projection

LINEAR_GROUP = FP8_GROUP
ENTRY_GROUP = 64
INDEX_GROUP = 32


class Rounding:
    """The round trips of one model; under PLAIN each of them returns its argument.

    Raises: BindError under W4A8 if the operators know no int8.
    """

    def __init__(self, ops: OpTable, numerics: Numerics) -> None:
        self.ops = ops
        self.is_trained = numerics is not Numerics.PLAIN
        self.fp4_trip = Trip.INT8 if numerics is Numerics.W4A8 else Trip.FP8
        if numerics is Numerics.W4A8:
            ops.int8_round_trip(torch.zeros(1, INT8_GROUP), INT8_GROUP)  # refused now rather than in a step

    def rounds(self, weight_format: WeightFormat) -> Trip:
        """The round trip that the inputs of a weight stored like this make."""
        if not self.is_trained or weight_format in (WeightFormat.BF16, WeightFormat.FP32):
            return Trip.NONE
        return self.fp4_trip if weight_format in PACKED else Trip.FP8

    def linear(self, x: Tensor, projection: Projection) -> Tensor:
        """Multiply by a weight, the input rounded as the weight was trained. Shapes: x [T, K]; returns [T, N]."""
        return self.ops.linear(self.input(x, projection.format), projection.weight, self.rounds(projection.format))

    def input(self, x: Tensor, weight_format: WeightFormat) -> Tensor:
        """Round the input of a weight stored like this. Shapes: x [T, K]."""
        return make_trip(self.ops, x, self.rounds(weight_format))

    def entry(self, kv: Tensor, rope_dim: int) -> Tensor:
        """Round the channels without position of window keys or compressed entries. Shapes: kv [T, c]."""
        if not self.is_trained:
            return kv
        nope = self.ops.fp8_round_trip(kv[:, :-rope_dim].contiguous(), ENTRY_GROUP)
        return torch.cat([nope, kv[:, -rope_dim:]], dim=-1)

    def index(self, x: Tensor) -> Tensor:
        """Round index queries or index keys. Shapes: x [..., cI]."""
        return self.ops.fp4_round_trip(self.ops.hadamard(x), INDEX_GROUP) if self.is_trained else x
