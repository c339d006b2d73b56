"""From answers to shares: how many of a cell are right, parse, and fit their schema."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nano_data import Example, Grader

from nano_eval.cells import Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Counts of one cell. Rule: `fitting` are answers that parse and match their schema."""

    cell: Cell
    num_played: int
    correct: int
    fitting: int
    wrong: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of right answers."""
        return self.correct / max(self.num_played, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One prompt and the answer to it."""

    example: Example
    answer: tuple[int, ...]


def score(cell: Cell, played: Sequence[Played], grader: Grader) -> Score:
    """Grade the answers of one cell; the first few wrong ones are told."""
    verdicts = [grader.grade(item.example, item.answer) for item in played]
    return Score(
        cell=cell,
        num_played=len(verdicts),
        correct=sum(verdict.is_correct for verdict in verdicts),
        fitting=sum(verdict.parses and verdict.matches_schema for verdict in verdicts),
        wrong=tuple(verdict.reason for verdict in verdicts if not verdict.is_correct)[:4],
    )


def total_share(scores: Iterable[Score]) -> float:
    """Mean of the cells' shares."""
    shares = [item.share for item in scores]
    return sum(shares) / max(len(shares), 1)
