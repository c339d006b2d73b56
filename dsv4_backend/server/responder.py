"""Answers on their way out: chunks come in from the engine's loop thread, responses leave on one sender thread.

Everything that is pending for a request leaves in ONE response, because the cost is per response and not per token: one
token each when the server is idle, more by itself under load. `stream=false` waits for the final chunk.

What is pending for a request is bounded by its max_tokens; what the server buffers for a client that does not read
cannot be seen from here.

Rule: every stream that was opened and not dropped ends in exactly one final response, whatever fails.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from dsv4_backend.errors import AlreadyRunningError, Dsv4Error, NotFoundError
from dsv4_backend.records import Chunk, FinishReason, Usage
from dsv4_backend.server.attempt import attempt
from dsv4_backend.server.codec import Array, encode_chunk, merge_chunks

POLL_S = 0.05  # between two looks for clients that went away
MAX_PENDING = 1024  # chunks of an unstreamed answer that are kept before they are joined, to save memory
MAX_POLLS = 64  # looks per round: each is a call of up to 76 µs into the server
_log = logging.getLogger(__name__)


class EngineFailedError(Dsv4Error):
    """An engine failure before the first response: the server's fault, not the client's."""


class Channel(Protocol):
    """The way back to one client."""

    def send(self, arrays: dict[str, Array], *, is_final: bool) -> None:
        """Send one response."""

    def fail(self, error: Exception) -> None:
        """Send an error as the first and final response."""

    def is_cancelled(self) -> bool:
        """Whether the client took its request back or is gone."""


@dataclass(slots=True, eq=False)
class OutStream:
    """One admitted request's way out; the engine's ChunkSink.

    Rule: `engine_id` names it to the engine, so that a client may reuse its id as soon as it has the final response.
          `is_watched` is false where the server passes no cancellation on (through the ensemble).
    """

    engine_id: str
    client_id: str
    channel: Channel
    responder: Responder
    is_streamed: bool = True
    is_watched: bool = False
    wants_logprobs: bool = False
    num_sent: int = 0
    is_ready: bool = False
    is_ended: bool = False
    pending: list[Chunk] = field(default_factory=list)

    def put(self, chunk: Chunk) -> None:
        """Take a chunk from the loop thread; cheap and never blocks."""
        self.responder.enqueue(self, chunk)


class Responder:
    """Owns the open streams and the sender thread."""

    def __init__(self, cancel: Callable[[str], None], every_poll: Callable[[], None] = lambda: None) -> None:
        self._cancel = cancel
        self._every_poll = every_poll
        self._changed = threading.Condition()
        self._streams: dict[str, OutStream] = {}
        self._by_client: dict[str, OutStream] = {}
        self._ready: list[OutStream] = []
        self._num_opened = 0
        self._next_poll_s = 0.0
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="dsv4-sender", daemon=True)

    @property
    def num_open(self) -> int:
        """Streams that have not had their final response."""
        with self._changed:
            return len(self._streams)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def open(self, client_id: str, channel: Channel, *, is_watched: bool = False) -> OutStream:
        """Begin a stream. An empty client id gets a fresh one. Raises: AlreadyRunningError."""
        with self._changed:
            if client_id in self._by_client:
                raise AlreadyRunningError(f"request id {client_id!r} is already running. Use a fresh id, or none.")
            self._num_opened += 1
            stream = OutStream(f"{self._num_opened}:{client_id}", client_id, channel, self, is_watched=is_watched)
            self._streams[stream.engine_id] = stream
            if client_id:
                self._by_client[client_id] = stream
            return stream

    def drop(self, stream: OutStream) -> None:
        """Forget a stream that the engine refused; the caller answers it."""
        with self._changed:
            self._forget(stream)

    def find(self, client_id: str) -> str:
        """Return the engine's id of a running request. Raises: NotFoundError."""
        with self._changed:
            if client_id not in self._by_client:
                raise NotFoundError(f"no request with id {client_id!r} is running; it may have ended already.")
            return self._by_client[client_id].engine_id

    def enqueue(self, stream: OutStream, chunk: Chunk) -> None:
        """Take a chunk; the sender thread is woken when there is something to send."""
        with self._changed:
            if stream.is_ended:
                return
            stream.pending.append(chunk)
            is_due = stream.is_streamed or chunk.is_final or len(stream.pending) >= MAX_PENDING
            if is_due and not stream.is_ready:
                stream.is_ready = True
                self._ready.append(stream)
                self._changed.notify()

    def end_all(self) -> None:
        """Ask the engine to end every open stream; each still gets its final response."""
        with self._changed:
            streams = list(self._streams.values())
        for stream in streams:
            self._cancel_quietly(stream)

    def close(self) -> None:
        """Send what is pending, end what the engine left open, and join the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def check(self) -> None:
        """Verify the books. Raises: AssertionError."""
        with self._changed:
            named = {id(stream) for stream in self._streams.values() if stream.client_id}
            if named != {id(stream) for stream in self._by_client.values()}:
                raise AssertionError("streams by client id and by engine id differ")

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._ready and not self._is_closing:
                    self._changed.wait(POLL_S)
                ready, self._ready = self._ready, []
                is_last = self._is_closing and not ready
            for stream in ready:
                self._deliver(stream)
            if is_last:
                break
            self._poll()
        self._end_the_rest()
        self._guard(self._every_poll)

    def _deliver(self, stream: OutStream) -> None:
        """Send everything that is pending for one stream. A failure ends this stream only."""
        with self._changed:
            chunks, stream.pending = stream.pending, []
            stream.is_ready = False
            is_final = bool(chunks) and chunks[-1].is_final
            if is_final:
                self._forget(stream)  # before the response leaves: its reader may use the id again at once
        pass_on = self._send if stream.is_streamed or is_final else self._keep
        if chunks and not self._guard(lambda: pass_on(stream, merge_chunks(chunks))):
            self.drop(stream)
            self._guard(lambda: self._cancel_quietly(stream))
            self._send_last_words(stream, "sending the answer failed; the server's log has the details.")

    def _keep(self, stream: OutStream, chunk: Chunk) -> None:
        with self._changed:
            stream.pending.insert(0, chunk)

    def _send(self, stream: OutStream, chunk: Chunk) -> None:
        if chunk.finish_reason is FinishReason.ERROR and stream.num_sent == 0:
            stream.channel.fail(EngineFailedError(chunk.error))
            return
        arrays = encode_chunk(chunk, stream.num_sent, wants_logprobs=stream.wants_logprobs)
        stream.channel.send(arrays, is_final=chunk.is_final)
        stream.num_sent += 1

    def _send_last_words(self, stream: OutStream, error: str) -> None:
        self._guard(lambda: stream.channel.send(_last_words(stream, error), is_final=True))

    @staticmethod
    def _guard(action: Callable[[], None]) -> bool:
        """Log what fails, and go on: the thread must outlive it. Returns whether the action was done."""
        error = attempt(action)
        if error:
            _log.error("the sender thread goes on after an error", exc_info=error)
        return error is None

    def _poll(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_poll_s:
            return
        self._next_poll_s = now_s + POLL_S
        self._guard(self._cancel_the_gone)
        self._guard(self._every_poll)

    def _cancel_the_gone(self) -> None:
        with self._changed:
            watched = [stream for stream in self._streams.values() if stream.is_watched][:MAX_POLLS]
            for stream in watched:  # to the end of the line: everybody is looked at in turn
                self._streams[stream.engine_id] = self._streams.pop(stream.engine_id)
        for stream in watched:
            if stream.channel.is_cancelled():
                stream.is_watched = False
                self._cancel_quietly(stream)

    def _cancel_quietly(self, stream: OutStream) -> None:
        try:
            self._cancel(stream.engine_id)
        except NotFoundError:
            _log.debug("%s ended by itself before it was cancelled", stream.engine_id)

    def _end_the_rest(self) -> None:
        with self._changed:
            rest = list(self._streams.values())
        for stream in rest:
            self.drop(stream)
            _log.error("%s was left without an end by the engine", stream.engine_id)
            self._send_last_words(stream, "the server has stopped before the answer was complete.")

    def _forget(self, stream: OutStream) -> None:
        stream.is_ended = True
        self._streams.pop(stream.engine_id, None)
        if self._by_client.get(stream.client_id) is stream:
            del self._by_client[stream.client_id]


def _last_words(stream: OutStream, error: str) -> dict[str, Array]:
    usage = Usage(num_input_tokens=0, num_output_tokens=0)
    chunk = Chunk(
        request_id=stream.engine_id, index=0, token_ids=(), text_ids=(), skip_bytes=0, keep_bytes=0, usage=usage,
        finish_reason=FinishReason.ERROR, error=error,
    )  # fmt: skip
    return encode_chunk(chunk, stream.num_sent, wants_logprobs=False)
