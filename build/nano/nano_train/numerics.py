"""Round trips of quantisation-aware training, with gradients that pass straight through.

Rule: the places are those of `dsv4_backend.model.numerics` under TRAINED; without `is_trained` nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from dsv4_kernels.ops import OpTable
from dsv4_kernels.reference.round_trip import hadamard
from dsv4_kernels.tensors import dequantise, quantise_fp8_block, quantise_mxfp4
from torch import Tensor

from dsv4_backend.checkpoint.layout import Storage
from dsv4_backend.checkpoint.names import model_weights
from dsv4_backend.config import ModelConfig
from dsv4_backend.model.numerics import ENTRY_GROUP, INDEX_GROUP, LINEAR_GROUP
from nano_train.weights import QUANTISED, Weights


def straight_through(x: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the rounded value with the gradient of x. The rounding itself is done on the CPU."""
    with torch.no_grad():
        host = x.detach().contiguous().cpu()
        difference = (rounded(host) - host).to(x.device)
    return x + difference


@dataclass(frozen=True, slots=True)
class Rounding:
    """The round trips of activations; without operators each of them returns its argument."""

    kernels: OpTable | None = None

    @property
    def is_trained(self) -> bool:
        """Whether anything is rounded."""
        return self.kernels is not None

    def input(self, x: Tensor) -> Tensor:
        """Round the input of a quantised linear. Shapes: x [..., K]."""
        return self._fp8(x, LINEAR_GROUP)

    def entry(self, kv: Tensor, rope_dim: int) -> Tensor:
        """Round the channels without position of keys or entries. Shapes: kv [..., c]."""
        if self.kernels is None:
            return kv
        return torch.cat([self._fp8(kv[..., :-rope_dim], ENTRY_GROUP), kv[..., -rope_dim:]], dim=-1)

    def index(self, x: Tensor) -> Tensor:
        """Round index queries or keys, after the Hadamard transform. Shapes: x [..., cI]."""
        kernels = self.kernels
        if kernels is None:
            return x
        return straight_through(hadamard(x), lambda value: kernels.fp4_round_trip(value, INDEX_GROUP))

    def _fp8(self, x: Tensor, group: int) -> Tensor:
        kernels = self.kernels
        if kernels is None:
            return x
        return straight_through(x, lambda value: kernels.fp8_round_trip(value, group))


def quantised_names(config: ModelConfig) -> dict[str, Storage]:
    """Return the matrices that the official layout quantises, experts under their stacked names."""
    found: dict[str, Storage] = {}
    for weight in model_weights(config, QUANTISED):
        if weight.storage in (Storage.FP8, Storage.MXFP4):
            name = weight.name
            if weight.expert is not None:
                prefix, _, part = name.removesuffix(".weight").rpartition(".")
                name = f"{prefix.rpartition('.')[0]}.{'w2' if part == 'w2' else 'w13'}"
            found[name] = weight.storage
    return found


def rounded_weights(weights: Mapping[str, Tensor], storages: Mapping[str, Storage]) -> Weights:
    """Return weights as the official layout stores them; gradients pass straight through to the given ones."""
    return {
        name: straight_through(tensor, _STORED[storages[name]]) if name in storages else tensor
        for name, tensor in weights.items()
    }


def _as_mxfp4(tensor: Tensor) -> Tensor:
    return dequantise(quantise_mxfp4(tensor.flatten(0, -2))).view_as(tensor)


def _as_fp8(tensor: Tensor) -> Tensor:
    return dequantise(quantise_fp8_block(tensor))


_STORED = {Storage.FP8: _as_fp8, Storage.MXFP4: _as_mxfp4}
