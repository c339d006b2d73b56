"""How many drafts a sequence gets: as many as were accepted lately, none for a while where hardly any were."""

from __future__ import annotations

from dataclasses import dataclass

MEMORY = 0.8  # weight of the past
START_RATE = 0.5
WORTH = 0.3  # a draft is worth its computation while it is accepted at least this often
PAUSE_TOKENS = 32


@dataclass(slots=True)
class DraftPace:
    """Acceptance of one sequence. Rule: the i-th draft is accepted with rate^i."""

    max_drafts: int
    rate: float = START_RATE
    pause: int = 0

    def count(self) -> int:
        """How many drafts are worth computing now; a sequence that pauses comes nearer to its next try."""
        if self.pause:
            self.pause -= 1
            return 0
        count, chance = 0, self.rate
        while count < self.max_drafts and chance >= WORTH:
            count, chance = count + 1, chance * self.rate
        return count

    def note(self, num_drafted: int, num_accepted: int) -> None:
        """Drafts were verified."""
        was_cut = num_accepted < num_drafted
        tried = num_accepted + was_cut  # drafts behind the first wrong one say nothing
        self.rate = MEMORY * self.rate + (1 - MEMORY) * num_accepted / max(tried, 1)
        if self.rate < WORTH:
            self.rate, self.pause = START_RATE, PAUSE_TOKENS
