"""Where the round trips of quantisation-aware training stand.

`Numerics.TRAINED` repeats what DeepSeek's reference does (later revision), in fp32 between the round trips:

| value | round trip |
|---|---|
| input of a linear whose weight is stored as FP8 or FP4, routed experts included | FP8, groups of 128 channels |
| input of the router, compressors, weights_proj, wo_a, head | none |
| window keys and compressed entries, channels without position | FP8, groups of 64 channels |
| index queries and index keys | Hadamard, then FP4 in groups of 32 |

`Numerics.PLAIN` does none of it. A BF16 checkpoint keeps the cache and index round trips under TRAINED, because they
are part of the model; only the linear inputs follow the weight's format.
Source: shared facts `deepseek_v4.md` 2.5-2.8, 3.2.
"""

from __future__ import annotations

import torch
from dsv4_kernels.ops import OpTable
from dsv4_kernels.tensors import WeightFormat
from torch import Tensor

from dsv4_backend.config import Numerics
from dsv4_backend.model.weights import Projection

LINEAR_GROUP = 128
ENTRY_GROUP = 64
INDEX_GROUP = 32


class Rounding:
    """The round trips of one model; under PLAIN each of them returns its argument."""

    def __init__(self, ops: OpTable, numerics: Numerics) -> None:
        self.ops = ops
        self.is_trained = numerics is Numerics.TRAINED

    def rounds(self, weight_format: WeightFormat) -> bool:
        """Whether the inputs of a weight stored like this are rounded."""
        return self.is_trained and weight_format not in (WeightFormat.BF16, WeightFormat.FP32)

    def linear(self, x: Tensor, projection: Projection) -> Tensor:
        """Multiply by a weight, the input rounded as the weight was trained. Shapes: x [T, K]; returns [T, N]."""
        return self.ops.linear(self.input(x, projection.format), projection.weight)

    def input(self, x: Tensor, weight_format: WeightFormat) -> Tensor:
        """Round the input of a weight stored like this. Shapes: x [T, K]."""
        return self.ops.fp8_round_trip(x, LINEAR_GROUP) if self.rounds(weight_format) else x

    def entry(self, kv: Tensor, rope_dim: int) -> Tensor:
        """Round the channels without position of window keys or compressed entries. Shapes: kv [T, c]."""
        if not self.is_trained:
            return kv
        nope = self.ops.fp8_round_trip(kv[:, :-rope_dim].contiguous(), ENTRY_GROUP)
        return torch.cat([nope, kv[:, -rope_dim:]], dim=-1)

    def index(self, x: Tensor) -> Tensor:
        """Round index queries or index keys. Shapes: x [..., cI]."""
        return self.ops.fp4_round_trip(self.ops.hadamard(x), INDEX_GROUP) if self.is_trained else x
