"""The engine: admits requests from any thread, runs the step loop on its own, and answers every request once.

Rule: after `submit` returns, the sink gets exactly one final chunk, whatever happens.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from dsv4_backend.config import ServingConfig
from dsv4_backend.engine.admission import AdmissionLimits, resolve_max_tokens
from dsv4_backend.engine.executor import Executor
from dsv4_backend.engine.loop import StepLoop
from dsv4_backend.engine.stream import ChunkSink
from dsv4_backend.errors import NotFoundError, OverloadedError, RequestError
from dsv4_backend.records import Chunk, Request
from dsv4_backend.scheduler.reasoning import ReasoningBudget, ThinkTokens
from dsv4_backend.scheduler.sequence import Sequence, with_seed

RETRY_AFTER_S = 1.0
SAVE_S = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Add:
    sequence: Sequence
    sink: ChunkSink


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cancel:
    request_id: str


class _IdFreeingSink:
    """Frees the request's id before the final chunk leaves, so that a client may use it again at once."""

    def __init__(self, sink: ChunkSink, forget: Callable[[str], None]) -> None:
        self._sink = sink
        self._forget = forget

    def put(self, chunk: Chunk) -> None:
        if chunk.is_final:
            self._forget(chunk.request_id)
        self._sink.put(chunk)


class Engine:
    """Thread-safe front of the step loop. Only `assemble` constructs it."""

    def __init__(
        self,
        *,
        config: ServingConfig,
        limits: AdmissionLimits,
        think: ThinkTokens,
        turn_id: int | None = None,
        executor: Executor,
        loop: StepLoop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._limits = limits
        self._think = think
        self._turn_id = turn_id
        self._executor = executor
        self._loop = loop
        self._clock = clock
        self._changed = threading.Condition()
        self._inbox: list[_Add | _Cancel] = []
        self._ids: set[str] = set()
        self._num_submitted = 0
        self._is_idle = False
        self._is_draining = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="dsv4-loop", daemon=True)

    @property
    def limits(self) -> AdmissionLimits:
        """What a prompt must keep to be admitted."""
        return self._limits

    @property
    def num_admitted(self) -> int:
        """Requests that have not had their final chunk."""
        with self._changed:
            return len(self._ids)

    def start(self) -> None:
        """Load the weights and begin to serve. Raises: CheckpointError, ConfigError, ExecutorLostError."""
        self._executor.start()
        self._thread.start()

    def submit(self, request: Request, sink: ChunkSink) -> None:
        """Admit a request.

        Raises: RequestError when it can never be served as it stands or its id is running, OverloadedError when it
                cannot be admitted now. Then the sink gets nothing.
        """
        max_tokens = resolve_max_tokens(request.prompt, self._limits)
        request = with_seed(request, secrets.randbits(62))
        with self._changed:
            self._refuse_unless_open(request.id)
            self._num_submitted += 1
            sequence = self._sequence(self._num_submitted, request, max_tokens)
            self._ids.add(request.id)
            self._inbox.append(_Add(sequence=sequence, sink=_IdFreeingSink(sink, self._forget)))
            self._changed.notify_all()

    def cancel(self, request_id: str) -> None:
        """End a running request; its stream gets a final chunk with reason `cancelled`.

        Raises: NotFoundError when no such request runs.
        """
        with self._changed:
            if request_id not in self._ids:
                raise NotFoundError(f"no request with id {request_id!r} is running; it may have ended already.")
            self._inbox.append(_Cancel(request_id=request_id))
            self._changed.notify_all()

    def close(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, let the admitted ones finish for up to drain_s seconds, end the rest, stop the ranks."""
        with self._changed:
            self._is_draining = True
            self._changed.wait_for(lambda: not self._ids or not self._thread.is_alive(), timeout=drain_s)
            if not self._ids:  # what is kept of the last requests may have to be written yet
                self._changed.wait_for(lambda: self._is_idle or not self._thread.is_alive(), timeout=SAVE_S)
            self._is_closed = True
            self._changed.notify_all()
        self._executor.close()
        if self._thread.is_alive():
            self._thread.join()

    def _refuse_unless_open(self, request_id: str) -> None:
        if self._is_draining:
            raise OverloadedError("the server is stopping and admits no requests.", retry_after_s=10.0)
        if request_id in self._ids:
            raise RequestError(f"a request with id {request_id!r} is already running. Use a fresh id, or none.")
        limit = self._config.max_sequences + self._config.max_waiting
        if len(self._ids) >= limit:
            raise OverloadedError(
                f"{len(self._ids)} requests are admitted; the limit is {limit} (max_sequences + max_waiting).",
                retry_after_s=RETRY_AFTER_S,
            )

    def _sequence(self, sequence_id: int, request: Request, max_tokens: int) -> Sequence:
        budget, ids = request.prompt.limits.max_reasoning_tokens, request.prompt.token_ids
        return Sequence(
            id=sequence_id,
            request=request,
            max_tokens=max_tokens,
            arrival_s=self._clock(),
            token_ids=list(ids),
            num_prompt=len(ids),
            turn_id=self._turn_id,
            reasoning=None if budget is None else ReasoningBudget(self._think, budget, ids),
        )

    def _run(self) -> None:
        while self._await_work():
            try:
                self._take_inbox()
                self._loop.turn(self._clock())
            except Exception as error:  # the loop's last line of defence: answer everybody, go on serving
                _log.exception("the step loop failed; every request is ended and the ranks are restarted")
                self._loop.fail_all(f"internal engine error: {error}")
        self._take_inbox()
        self._loop.fail_all("the server has stopped before the answer was complete.")

    def _await_work(self) -> bool:
        """Wait until there is something to do; False when the engine is closed."""
        with self._changed:
            self._is_idle = not (self._inbox or self._loop.has_work)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_closed or self._inbox or self._loop.has_work)
            self._is_idle = False
            return not self._is_closed

    def _take_inbox(self) -> None:
        with self._changed:
            inbox, self._inbox = self._inbox, []
        for command in inbox:
            if isinstance(command, _Add):
                self._loop.add(command.sequence, command.sink)
            else:
                self._loop.cancel(command.request_id)

    def _forget(self, request_id: str) -> None:
        with self._changed:
            self._ids.discard(request_id)
            self._changed.notify_all()
