"""What the engine needs of whoever runs steps."""

from __future__ import annotations

from typing import Protocol

from dsv4_backend.records import StepPlan, StepResult


class Executor(Protocol):
    """Runs steps on one or more ranks, which remember sequences between steps."""

    def start(self) -> None:
        """Bring the ranks up, weights loaded. Raises: CheckpointError, ConfigError, ExecutorLostError."""

    def begin(self, plan: StepPlan) -> None:
        """Give the ranks one more step; it follows those that were begun and not finished.

        Raises: ExecutorLostError when a rank is gone; then all ranks have forgotten everything.
        """

    def finish(self) -> StepResult:
        """Wait for the oldest step that was begun. Raises: ExecutorLostError as `begin` does."""

    def restart(self) -> None:
        """Replace lost ranks. Raises: ExecutorLostError when that fails."""

    def close(self) -> None:
        """Stop the ranks; safe to call twice and from another thread."""
