"""What a rank says to its parent besides StepResult."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Weights loaded so far."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The rank holds its weights and takes plans. Notes say what an operator should know of the checkpoint."""

    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The checkpoint or a setting cannot be used; a restart would not help."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A step raised; the rank's memory of sequences is not to be trusted any more."""

    why: str
