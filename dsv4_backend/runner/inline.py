"""Run steps in this process: for tests and for use as a library. A crash of the model is a crash of the caller."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dsv4_backend.errors import ExecutorLostError
from dsv4_backend.records import StepPlan, StepResult
from dsv4_backend.runner.rank import Rank


class InlineExecutor:
    """One rank without a process of its own."""

    def __init__(self, load: Callable[[], Rank]) -> None:
        self._load = load
        self._rank: Rank | None = None
        self._begun: deque[StepPlan] = deque()

    def start(self) -> None:
        """Load the weights. Raises: CheckpointError, ConfigError."""
        self._rank = self._load()

    def restart(self) -> None:
        """Forget every sequence."""
        self.close()
        self._rank = self._load()

    def begin(self, plan: StepPlan) -> None:
        """Take a step in. Raises: ExecutorLostError when closed."""
        if self._rank is None:
            raise ExecutorLostError("the executor is closed.")
        self._begun.append(plan)

    def finish(self) -> StepResult:
        """Run the oldest step that was taken in. Raises: ExecutorLostError when closed."""
        if self._rank is None:
            raise ExecutorLostError("the executor is closed.")
        return self._rank.execute(self._begun.popleft())

    def close(self) -> None:
        """Let the weights go, after what is being written to disk."""
        self._begun.clear()
        if self._rank is not None:
            self._rank.close()
        self._rank = None
