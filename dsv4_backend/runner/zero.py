"""A zero-compute executor: repeats the prompt. It measures what the server costs without a model."""

from __future__ import annotations

import time
from collections import deque

from dsv4_backend.records import PlanRow, RowResult, SequenceStart, StepPlan, StepResult, TokenLogprob


class ZeroExecutor:
    """Answers each sequence with its own prompt, token by token and over again."""

    def __init__(self) -> None:
        self._prompts: dict[int, tuple[int, ...]] = {}
        self._begun: deque[StepPlan] = deque()

    def start(self) -> None:
        """Nothing to load."""

    def restart(self) -> None:
        """Forget all sequences, as a lost rank would."""
        self._prompts.clear()
        self._begun.clear()

    def close(self) -> None:
        """Nothing to stop."""

    def begin(self, plan: StepPlan) -> None:
        """Take a step in."""
        self._begun.append(plan)

    def finish(self) -> StepResult:
        """Run the oldest step that was taken in: position p gets prompt token (p mod prompt length)."""
        plan = self._begun.popleft()
        time.sleep(0)  # as waiting for a rank does, let the other threads have the interpreter
        for sequence_id in plan.finished:
            self._prompts.pop(sequence_id, None)
        for start in plan.starts:
            self._prompts[start.sequence_id] = _prompt(start)
        return StepResult(step=plan.step, rows=tuple(self._row(row) for row in plan.rows))

    def _row(self, row: PlanRow) -> RowResult:
        if not row.is_sampled:
            return RowResult(sequence_id=row.sequence_id)
        prompt = self._prompts[row.sequence_id]
        token_id = prompt[(row.start + len(row.token_ids) - row.num_drafts) % len(prompt)]
        if row.forced_token_id is not None:
            token_id = row.forced_token_id
        logprobs = (TokenLogprob(token_id=token_id, logprob=0.0),)
        return RowResult(sequence_id=row.sequence_id, token_ids=(token_id,), logprobs=logprobs)


def _prompt(start: SequenceStart) -> tuple[int, ...]:
    return start.token_ids[: start.num_prompt_tokens]
