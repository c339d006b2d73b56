"""One admitted request on its way out: results of steps become chunks, and exactly one of them is final."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dsv4_backend.engine.release import Released, Releaser
from dsv4_backend.metrics import MetricsSink
from dsv4_backend.records import Chunk, FinishReason, TokenLogprob
from dsv4_backend.scheduler.sequence import Sequence


class ChunkSink(Protocol):
    """Where the chunks of one request go."""

    def put(self, chunk: Chunk) -> None:
        """Take a chunk. Called on the loop's thread: must not block and must not raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRules:
    """What all streams of an engine share."""

    token_bytes: Callable[[int], bytes]
    eos_token_ids: tuple[int, ...]
    bos_token_id: int
    default_time_limit_s: float


class Stream:
    """Turns the tokens of one sequence into chunks. Used on the loop's thread only."""

    def __init__(self, sequence: Sequence, sink: ChunkSink, rules: StreamRules, metrics: MetricsSink) -> None:
        self.sequence = sequence
        self._sink = sink
        self._rules = rules
        self._metrics = metrics
        self._logprobs: list[TokenLogprob] = []
        self._num_chunks = 0
        self._last_token_s: float | None = None
        self._is_queued = True
        prompt = sequence.prompt
        self._releaser = Releaser(rules.token_bytes, prompt.limits.stop, self._echo_ids() if prompt.echo else ())
        limit_s = min(rules.default_time_limit_s, prompt.limits.timeout_s or rules.default_time_limit_s)
        self.deadline_s = sequence.arrival_s + limit_s

    def note_step(self, now_s: float) -> None:
        """The sequence was part of a step; the first time ends its queueing."""
        if self._is_queued:
            self._is_queued = False
            self._metrics.observe("dsv4_queue_seconds", now_s - self.sequence.arrival_s)

    def take(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...], now_s: float) -> FinishReason | None:
        """Take the newest tokens of the sequence; return why the request ends with one of them, if it does.

        Rule: tokens behind that one are dropped.
        """
        first = self.sequence.num_output - len(token_ids) + 1
        for index, token_id in enumerate(token_ids):
            reason = self._push(token_id, logprobs[index : index + 1], now_s, first + index)
            if reason is not None:
                self.sequence.drop_last(len(token_ids) - 1 - index)
                return reason
        return None

    def _push(
        self, token_id: int, logprobs: tuple[TokenLogprob, ...], now_s: float, num_output: int
    ) -> FinishReason | None:
        self._measure(now_s)
        self._logprobs.extend(logprobs)
        limits = self.sequence.prompt.limits
        is_end = token_id in self._rules.eos_token_ids and not limits.ignore_eos
        is_hit = self._releaser.push(token_id, is_text=not is_end, is_matched=num_output > limits.min_tokens)
        if is_end or is_hit:
            return FinishReason.STOP
        return FinishReason.LENGTH if num_output >= self.sequence.max_tokens else None

    def flush(self) -> None:
        """Send what may leave now, if anything."""
        released = self._releaser.take()
        if released.token_ids or released.text_ids:
            self._send(released, None, "")

    def finish(self, reason: FinishReason, error: str = "") -> None:
        """Send everything that is left, and the final word."""
        self._send(self._releaser.flush(), reason, error)
        outcome = reason.value
        self._metrics.count("dsv4_requests_total", outcome=outcome)

    def _send(self, released: Released, reason: FinishReason | None, error: str) -> None:
        num_logprobs = len(released.token_ids) if self._logprobs else 0
        logprobs, self._logprobs = tuple(self._logprobs[:num_logprobs]), self._logprobs[num_logprobs:]
        is_first = self._num_chunks == 0
        chunk = Chunk(
            request_id=self.sequence.request.id,
            index=self._num_chunks,
            token_ids=released.token_ids,
            text_ids=released.text_ids,
            skip_bytes=released.skip_bytes,
            keep_bytes=released.keep_bytes,
            usage=self.sequence.usage,
            logprobs=logprobs,
            prompt_logprobs=tuple(self.sequence.prompt_logprobs) if is_first else (),
            finish_reason=reason,
            error=error,
        )
        self._num_chunks += 1
        self._sink.put(chunk)

    def _measure(self, now_s: float) -> None:
        self._metrics.count("dsv4_output_tokens_total")
        if self._last_token_s is None:
            self._metrics.observe("dsv4_time_to_first_token_seconds", now_s - self.sequence.arrival_s)
        else:
            self._metrics.observe("dsv4_inter_token_seconds", now_s - self._last_token_s)
        self._last_token_s = now_s

    def _echo_ids(self) -> tuple[int, ...]:
        """The prompt as text: without the begin-of-sequence token that the tokenizer put in front."""
        ids = self.sequence.prompt.token_ids
        return ids[1:] if ids[:1] == (self._rules.bos_token_id,) else ids
