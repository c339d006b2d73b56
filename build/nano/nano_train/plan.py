"""What a run does when: learning rate, lengths, and the phases of the indexer, the draft and the rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nano_data import DEFAULT_MIX, Mix, Mode

from nano_train.config import CHUNK


@dataclass(frozen=True, slots=True)
class Stage:
    """Part of a run, up to a share of its steps.

    Rule: a row holds row_tokens tokens; no document is longer than `longest`; recalled lists have about `recalled`
          tokens and up to `asked` questions per pair; a conversation has at most `tools` tools and `requests` requests,
          of which the share `pairs` is for two calls. `families` and `modes` are weights that replace the usual ones.
          Positions of recalled lists may jump on up to `reach`.
    """

    until: float
    row_tokens: int
    longest: int
    recalled: tuple[int, int]
    asked: float = 0.2
    tools: int = 6
    requests: int = 5
    pairs: float = 0.0
    families: Mapping[str, float] = field(default_factory=dict)
    modes: Mapping[Mode, float] = field(default_factory=dict)
    reach: int = 0


LATE_FAMILIES = {
    **{"tools": 11.0, "parallel": 9.0, "recall": 8.0, "arithmetic": 9.0, "json": 11.0},
    **{"sort": 22.0, "copy": 10.0, "greet": 3.5, "unknown": 2.5},
}
LATE_MODES: dict[Mode, float] = {"off": 0.36, "on": 0.36, "max": 0.28}
LATE = Stage(0.94, 2048, 2048, (40, 1900), 0.6, 6, 4, 0.35, LATE_FAMILIES, LATE_MODES, reach=24_000)
STAGES = (
    Stage(0.18, 1024, 320, (10, 160), tools=2, requests=1),
    Stage(0.5, 2048, 900, (10, 500), tools=3, requests=3),
    LATE,
    replace(LATE, until=0.98, row_tokens=4096, longest=4096, recalled=(40, 3900)),
    replace(LATE, until=1.0, row_tokens=8192, longest=8192, recalled=(80, 8000)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole run, or the rest of one that begins with the weights of a checkpoint. Shares are of the whole run.

    Rule: the first of num_steps steps stands at begin_share, the end at 1.
          The rate rises over warmup_steps, stays, and falls linearly to final_rate over the last decay_share.
          row_tokens caps the rows of all stages; packed_rows of them lie one after the other in a row of a step.
          families and modes are weights that replace those of the stages.
    """

    num_steps: int
    begin_share: float = 0.0
    seed: int = 1
    row_tokens: int = 8192
    rows_per_rank: int = 1
    packed_rows: int = 1
    peak_rate: float = 8e-3
    final_rate: float = 0.02
    warmup_steps: int = 60
    decay_share: float = 0.4
    index_share: float = 0.66
    dense_share: float = 0.76
    draft_share: float = 0.92
    deep_draft_share: float = 0.94
    rounding_share: float = 0.975
    draft_weight: float = 0.3
    prompt_weight: float = 0.2
    prompt_share: float = 0.5
    index_stride: int = 4
    balance_rate: float = 1e-3
    families: Mapping[str, float] = field(default_factory=dict)
    modes: Mapping[Mode, float] = field(default_factory=dict)

    def share(self, step: int) -> float:
        """Where in the whole run a step stands."""
        return self.begin_share + (1 - self.begin_share) * step / self.num_steps

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        past = (self.share(step) - (1 - self.decay_share)) / self.decay_share
        fall = min(max(past, 0.0), 1.0)
        risen = min((step + 1) / max(self.warmup_steps, 1), 1.0)
        return self.peak_rate * risen * (1 - (1 - self.final_rate) * fall)

    def stage(self, step: int) -> Stage:
        """The stage of a step."""
        return next(stage for stage in STAGES if self.share(step) < stage.until or stage is STAGES[-1])

    def tokens(self, step: int) -> int:
        """Tokens of each row of a step."""
        return min(self.stage(step).row_tokens, self.row_tokens) * self.packed_rows

    def mix(self, step: int) -> Mix:
        """What the rows of a step are made of: longer documents in later stages."""
        stage = self.stage(step)
        longest = min(stage.longest, self.row_tokens)
        return replace(
            DEFAULT_MIX,
            families={**DEFAULT_MIX.families, **stage.families, **self.families},
            modes={**DEFAULT_MIX.modes, **stage.modes, **self.modes},
            max_tokens=longest,
            recall_tokens=(stage.recalled[0], min(stage.recalled[1], longest - 40)),
            question_share=stage.asked,
            max_questions=round(20 * max(1.0, stage.asked / 0.2)),
            num_tools=(2, stage.tools),
            num_requests=(1, stage.requests),
            pair_share=stage.pairs,
        )

    def is_dense(self, step: int) -> bool:
        """Whether CSA layers still attend to all entries, because the indexer has learned too little."""
        return self.share(step) < self.dense_share

    def draft_depth(self, step: int) -> int:
        """How many tokens ahead the draft block is trained."""
        share = self.share(step)
        return int(share >= self.draft_share) + int(share >= self.deep_draft_share)

    def prompt(self, step: int) -> float:
        """Weight of the prompt's own tokens in the loss."""
        return self.prompt_weight if self.share(step) < self.prompt_share else 0.0

    def is_rounding(self, step: int) -> bool:
        """Whether weights and activations make the round trips of the exported checkpoint."""
        return self.share(step) >= self.rounding_share

    def index_chunks(self, step: int) -> frozenset[int]:
        """Chunks of a row whose queries train the indexers."""
        if self.share(step) < self.index_share:
            return frozenset()
        return frozenset(range(step % self.index_stride, self.tokens(step) // CHUNK, self.index_stride))
