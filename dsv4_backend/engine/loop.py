"""One turn of the step loop: plan, execute, commit, release. Used on one thread only."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from dsv4_backend.engine.executor import Executor
from dsv4_backend.engine.stream import ChunkSink, Stream, StreamRules
from dsv4_backend.errors import ExecutorLostError
from dsv4_backend.kv.manager import CacheManager
from dsv4_backend.metrics import MetricsSink
from dsv4_backend.records import FinishReason, StepPlan, StepResult
from dsv4_backend.scheduler.scheduler import Scheduler
from dsv4_backend.scheduler.sequence import Sequence

REPORT_EVERY_S = 0.02
_log = logging.getLogger(__name__)


class StepLoop:
    """Owns the streams of admitted requests and ends each of them once."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        cache: CacheManager,
        executor: Executor,
        rules: StreamRules,
        metrics: MetricsSink,
        max_restarts: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._cache = cache
        self._executor = executor
        self._rules = rules
        self._metrics = metrics
        self._max_restarts = max_restarts
        self._begun: StepPlan | None = None
        self._clock = clock
        self._streams: dict[str, Stream] = {}
        self._is_rank_lost = False
        self._num_preemptions = 0
        self._next_report_s = 0.0
        self._report()

    @property
    def has_work(self) -> bool:
        """Whether a turn would do something."""
        return bool(self._streams) or self._begun is not None or self._scheduler.has_saves

    def add(self, sequence: Sequence, sink: ChunkSink) -> None:
        """Begin a stream for an admitted request."""
        self._streams[sequence.request.id] = Stream(sequence, sink, self._rules, self._metrics)
        self._scheduler.add(sequence)
        self._metrics.count("dsv4_prompt_tokens_total", sequence.num_prompt)

    def cancel(self, request_id: str) -> None:
        """End a request at the client's wish; one that has ended meanwhile is fine."""
        stream = self._streams.get(request_id)
        if stream:
            self._end(stream, FinishReason.CANCELLED)

    def turn(self, now_s: float) -> None:
        """Finish one step: the one that was begun in the turn before, or a new one."""
        self._expire(now_s)
        if self._is_rank_lost:
            self._restart_ranks()
        if not self._is_rank_lost:
            begun, self._begun = self._begun, None
            plan = begun or self._scheduler.plan(now_s)
            if plan is not None:
                self._step(plan, is_begun=begun is not None)
        if now_s >= self._next_report_s or not self._streams:
            self._next_report_s = now_s + REPORT_EVERY_S
            self._report()

    def fail_all(self, message: str) -> None:
        """End every request with an in-band error and start from nothing; the next turn replaces the ranks."""
        self._is_rank_lost, self._begun = True, None
        streams, self._streams = self._streams, {}
        self._scheduler.clear()
        for stream in streams.values():
            stream.finish(FinishReason.ERROR, message)
        self._report()

    def check(self) -> None:
        """Verify that streams and sequences are the same requests. Raises: AssertionError."""
        self._scheduler.check()
        ids = {sequence.request.id for sequence in self._scheduler.sequences}
        if ids != set(self._streams):
            raise AssertionError(f"streams {sorted(self._streams)} but sequences {sorted(ids)}")

    def _step(self, plan: StepPlan, *, is_begun: bool) -> None:
        """Run a step to its end, and begin the one after it while it runs, where that can be planned.

        Rule: what ended since a step was begun is passed over; the ranks compute it for nobody.
        """
        by_id = {stream.sequence.id: stream for stream in self._streams.values()}
        start_s = self._clock()
        for row in plan.rows:
            if row.sequence_id in by_id:
                by_id[row.sequence_id].note_step(start_s)
        for start in plan.starts:
            sequence = by_id[start.sequence_id].sequence
            if sequence.is_first_start:
                self._metrics.count("dsv4_cached_tokens_total", sequence.usage.num_cached_tokens)
        try:
            if not is_begun:
                self._executor.begin(plan)
            if after := self._scheduler.plan_after(plan):
                self._executor.begin(after)
                self._begun = after
            result = self._executor.finish()
        except ExecutorLostError as error:
            self._lose_ranks(plan, str(error))
            return
        self._metrics.observe("dsv4_batch_size", float(len(plan.rows)))
        self._commit(plan, result, by_id)

    def _commit(self, plan: StepPlan, result: StepResult, by_id: dict[int, Stream]) -> None:
        now_s = self._clock()
        outcomes = {row.sequence_id: row for row in result.rows}
        for advance in self._scheduler.commit(plan, result):
            stream, outcome = by_id[advance.sequence.id], outcomes[advance.sequence.id]
            if outcome.error:
                self._end(stream, FinishReason.ERROR, outcome.error)
                continue
            if advance.num_drafted:
                drafter = self._scheduler.drafter
                self._metrics.count("dsv4_drafted_tokens_total", advance.num_drafted, drafter=drafter)
                self._metrics.count("dsv4_accepted_tokens_total", advance.num_accepted, drafter=drafter)
                self._metrics.count("dsv4_draft_rows_total", drafter=drafter)
            reason = stream.take(outcome.token_ids, outcome.logprobs, now_s)
            if reason is not None:
                self._end(stream, reason)
            elif outcome.token_ids:
                stream.flush()

    def _lose_ranks(self, plan: StepPlan, why: str) -> None:
        """A rank is gone: everybody running starts over, but for those that were there too often."""
        _log.warning("a rank was lost and is replaced: %s", why)
        self._is_rank_lost, self._begun = True, None
        streams = {stream.sequence.id: stream for stream in self._streams.values()}
        for sequence in self._scheduler.lose_ranks(plan.step):
            if sequence.num_restarts > self._max_restarts:
                message = f"the model failed {sequence.num_restarts} times on this request, the limit is"
                message += f" {self._max_restarts}; the last failure: {why}"
                self._end(streams[sequence.id], FinishReason.ERROR, message)
        self._restart_ranks()

    def _restart_ranks(self) -> None:
        """Replace the ranks, with bounded tries; without ranks every request ends, and the next one tries again."""
        why = ""
        for _ in range(max(1, self._max_restarts)):
            self._metrics.count("dsv4_rank_restarts_total")
            try:
                self._executor.restart()
            except ExecutorLostError as error:
                why = str(error)
                continue
            self._is_rank_lost = False
            return
        self.fail_all(f"the model cannot be restarted: {why}")

    def _expire(self, now_s: float) -> None:
        for stream in [item for item in self._streams.values() if now_s >= item.deadline_s]:
            arrival_s = stream.sequence.arrival_s
            message = f"the request took {now_s - arrival_s:.1f} s, its limit is {stream.deadline_s - arrival_s:g} s."
            self._end(stream, FinishReason.TIME_LIMIT, message)

    def _end(self, stream: Stream, reason: FinishReason, error: str = "") -> None:
        del self._streams[stream.sequence.request.id]
        self._scheduler.finish(stream.sequence)
        stream.finish(reason, error)

    def _report(self) -> None:
        self._metrics.set("dsv4_running_requests", len(self._scheduler.running))
        self._metrics.set("dsv4_waiting_requests", self._scheduler.num_waiting)
        for kind, kept in self._cache.kept().items():
            self._metrics.set("dsv4_pages_kept", kept, kind=kind)
        for kind, (used, total) in self._cache.usage().items():
            self._metrics.set("dsv4_pages_used", used, kind=kind)
            self._metrics.set("dsv4_pages_total", total, kind=kind)
        if self._scheduler.num_preemptions > self._num_preemptions:
            num_new = self._scheduler.num_preemptions - self._num_preemptions
            self._metrics.count("dsv4_preemptions_total", num_new)
            self._num_preemptions = self._scheduler.num_preemptions
