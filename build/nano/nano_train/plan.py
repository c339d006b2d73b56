"""What a run does when: learning rate, lengths, and the phases of the indexer, the draft and the rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from nano_data import DEFAULT_MIX, Mix

STAGES = ((0.08, 512, 250), (0.75, 1536, 900), (1.0, 4096, 3900))  # share of the run, longest document, recalled list


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole run. Shares are of `num_steps`.

    Rule: the rate rises over warmup_steps, stays, and falls to final_rate over the last decay_share.
    """

    num_steps: int
    seed: int = 1
    row_tokens: int = 4096
    rows_per_rank: int = 1
    peak_rate: float = 3e-3
    final_rate: float = 0.02
    warmup_steps: int = 60
    decay_share: float = 0.4
    dense_share: float = 0.08
    deep_draft_share: float = 0.6
    rounding_share: float = 0.85
    draft_weight: float = 0.3
    index_stride: int = 4
    balance_rate: float = 1e-3

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.peak_rate * (step + 1) / self.warmup_steps
        past = (step / self.num_steps - (1 - self.decay_share)) / self.decay_share
        fall = 0.5 * (1 + math.cos(math.pi * min(max(past, 0.0), 1.0)))
        return self.peak_rate * (self.final_rate + (1 - self.final_rate) * fall)

    def mix(self, step: int) -> Mix:
        """What the rows of a step are made of: longer documents in later stages."""
        share = step / self.num_steps
        _, longest, recalled = next(stage for stage in STAGES if share < stage[0] or stage is STAGES[-1])
        longest = min(longest, self.row_tokens)
        return replace(DEFAULT_MIX, max_tokens=longest, recall_tokens=(10, min(recalled, longest - 40)))

    def is_dense(self, step: int) -> bool:
        """Whether CSA layers still attend to all entries, because the indexer has learned too little."""
        return step < self.dense_share * self.num_steps

    def draft_depth(self, step: int) -> int:
        """How many tokens ahead the draft block is trained."""
        return 2 if step >= self.deep_draft_share * self.num_steps else 1

    def is_rounding(self, step: int) -> bool:
        """Whether weights and activations make the round trips of the exported checkpoint."""
        return step >= self.rounding_share * self.num_steps

    def index_chunks(self, step: int) -> frozenset[int]:
        """Chunks of a row whose queries train the indexers."""
        return frozenset(range(step % self.index_stride, self.row_tokens // 64, self.index_stride))
