"""Held-out conversations under teacher forcing.

Rule: a greedy answer is word for word the given one exactly if every token of the given one is the most likely token
      after those before it, so no text needs to be generated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from nano_data import Example
from torch import Tensor

from nano_train.data import Row
from nano_train.model import Pass

DEPTH = 2


@dataclass(slots=True)
class Tally:
    """Examples and exact answers by family, and how many drafts in a row hit, by answer token."""

    seen: Counter[str] = field(default_factory=Counter)
    exact: Counter[str] = field(default_factory=Counter)
    answer_tokens: int = 0
    accepted_drafts: int = 0

    def add(self, other: Tally) -> None:
        """Count another tally's examples too."""
        self.seen += other.seen
        self.exact += other.exact
        self.answer_tokens += other.answer_tokens
        self.accepted_drafts += other.accepted_drafts

    def shares(self) -> dict[str, float]:
        """Share of exact answers by family."""
        return {family: round(self.exact[family] / count, 4) for family, count in sorted(self.seen.items())}

    @property
    def accepted_length(self) -> float:
        """Tokens per step with DEPTH drafts, as a mean over all answer tokens: the token itself and accepted drafts."""
        return 1 + self.accepted_drafts / max(self.answer_tokens, 1)


@torch.no_grad()
def tally(run: Pass, row: Row) -> Tally:
    """Grade the last answer of every example of a row."""
    streams = run.backbone()
    spans = tuple(_answers(row))
    positions = torch.cat([torch.arange(low, high) for low, high, _ in spans])
    found = Tally()
    is_hit = token_hits(run, streams, positions, "")
    chain, accepted = torch.ones(len(positions), dtype=torch.bool), []
    for depth in range(DEPTH):
        streams = run.draft(streams.roll(1, 0) if depth else streams)
        chain = chain & token_hits(run, streams, positions + depth, "mtp.0.", ahead=1)
        accepted.append(chain)
    place = 0
    for low, high, example in spans:
        part = slice(place, place + high - low)
        found.seen[example.family] += 1
        found.exact[example.family] += int(is_hit[part].all())
        for depth, hits in enumerate(accepted, start=1):  # a draft beyond the end of the answer counts for nothing
            found.accepted_drafts += int(hits[part][: max(high - low - depth, 0)].sum())
        found.answer_tokens += high - low
        place += high - low
    return found


def _answers(row: Row) -> Iterator[tuple[int, int, Example]]:
    """The rows from which each example's last answer is predicted."""
    for start, example in zip(row.batch.starts, row.examples, strict=False):
        yield start + example.num_prompt_tokens - 1, start + len(example.token_ids) - 1, example


def token_hits(run: Pass, streams: Tensor, rows: Tensor, prefix: str, ahead: int = 0) -> Tensor:
    """Whether the most likely token after each row (or `ahead` further) is the real one."""
    last = run.batch.num_tokens - 1
    rows, targets = rows.clamp(max=last), (rows + ahead).clamp(max=last)
    return run.logits(streams[rows], prefix).argmax(1).cpu() == run.host.next_ids[targets]


def merged(tallies: Sequence[Tally]) -> Tally:
    """All tallies as one."""
    total = Tally()
    for item in tallies:
        total.add(item)
    return total
