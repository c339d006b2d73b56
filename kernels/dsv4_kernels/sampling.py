"""What decides the choice of a token, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEGLIGIBLE = -50.0  # a token whose weight is below e to this of the best one's is never chosen


@dataclass(frozen=True, slots=True)
class SampleRows:
    """Settings of S rows.

    Shapes: temperature, top_p, min_p, number float64 [S]; top_k int64 [S]; allowed int32 [S, ceil(V / 32)] or None.
    Units:  temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 switch that filter off; number is in [0, 1).
            bit b of word w of `allowed` says whether token 32 w + b may be chosen; None: every token may.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    number: Tensor
    allowed: Tensor | None = None

    @classmethod
    def of(cls, rows: list[tuple[float, int, float, float, float]], allowed: Tensor | None = None) -> SampleRows:
        """Gather rows of (temperature, top_k, top_p, min_p, number)."""
        temperature, top_k, top_p, min_p, number = zip(*rows, strict=True)
        reals = (torch.tensor(values, dtype=torch.float64) for values in (temperature, top_p, min_p, number))
        degrees, mass, least, numbers = reals
        return cls(degrees, torch.tensor(top_k, dtype=torch.int64), mass, least, numbers, allowed)

    def restrict(self, scores: Tensor) -> Tensor:
        """Return scores [S, V] with minus infinity for what is not allowed."""
        if self.allowed is None:
            return scores
        return scores.masked_fill(~unpack_bits(self.allowed.to(scores.device), scores.shape[1]), -torch.inf)


def num_words(num_tokens: int) -> int:
    """Return how many words of 32 bits hold one bit per token."""
    return -(-num_tokens // 32)


def pack_bits(allowed: Tensor) -> Tensor:
    """Return one bit per token. Shapes: allowed bool [V]; returns int32 [W]."""
    bits = torch.zeros(num_words(len(allowed)) * 32, dtype=torch.int64)
    bits[: len(allowed)] = allowed
    return (bits.view(-1, 32) << torch.arange(32)).sum(1).to(torch.int32)


def unpack_bits(words: Tensor, num_tokens: int) -> Tensor:
    """Return one bool per token. Shapes: words int32 [..., W]; returns [..., V]."""
    bits = words[..., None] >> torch.arange(32, dtype=torch.int32, device=words.device)  # [..., W, 32]
    return (bits & 1).flatten(-2)[..., :num_tokens].bool()
