"""The waiting line: priority first, then arrival; nobody waits for ever."""

from __future__ import annotations

from dsv4_backend.scheduler.sequence import Sequence

STARVATION_S = 30.0


class WaitingQueue:
    """Sequences without pages.

    Rule: the lowest priority value goes first, ties by arrival. A sequence that has waited STARVATION_S seconds goes
          before all that have not, so that a stream of urgent requests cannot starve the others.
    """

    def __init__(self) -> None:
        self._waiting: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Put a sequence into the line; a preempted one keeps its arrival and so its place."""
        self._waiting.append(sequence)

    def in_order(self, now_s: float) -> list[Sequence]:
        """Return all sequences in the order of their turns, without taking them out."""
        return sorted(self._waiting, key=lambda item: _rank(item, now_s))

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out of the line."""
        self._waiting.remove(sequence)

    def sequences(self) -> tuple[Sequence, ...]:
        """All waiting sequences, in no particular order."""
        return tuple(self._waiting)


def is_starving(sequence: Sequence, now_s: float) -> bool:
    """Whether a sequence has waited too long to be passed by any other."""
    return now_s - sequence.arrival_s >= STARVATION_S


def _rank(sequence: Sequence, now_s: float) -> tuple[bool, int, float, int]:
    starves = is_starving(sequence, now_s)
    return (not starves, 0 if starves else sequence.prompt.priority, sequence.arrival_s, sequence.id)
