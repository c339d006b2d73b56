"""dsv4_runtime without Triton's types: decode a request, submit it, return at once; the sender thread answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from dsv4_backend.engine.stream import ChunkSink
from dsv4_backend.errors import RequestError
from dsv4_backend.records import Chunk, FinishReason, Prompt, Request, Usage
from dsv4_backend.server.attempt import attempt
from dsv4_backend.server.codec import Array, Value, apply_options, check_prompt, decode_inputs, encode_chunk
from dsv4_backend.server.prepared import load_prompt
from dsv4_backend.server.responder import Channel, OutStream, Responder
from dsv4_backend.server.wire import MAX_ID_CHARS, RUNTIME_INPUTS

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """What the runtime needs of the engine."""

    def submit(self, request: Request, sink: ChunkSink) -> None:
        """Admit a request. Raises: RequestError, OverloadedError."""

    def cancel(self, request_id: str) -> None:
        """End a request. Raises: NotFoundError."""

    def close(self, drain_s: float) -> None:
        """Finish for up to drain_s seconds, end the rest, stop the ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """One request as Triton hands it over. timeout_s None: no limit of its own."""

    client_id: str
    tensors: Mapping[str, Array]
    channel: Channel
    timeout_s: float | None = None


class Runtime:
    """Joins the engine and the responder; owns neither's thread."""

    def __init__(self, engine: Engine, responder: Responder, *, vocab_size: int) -> None:
        self._engine = engine
        self._responder = responder
        self._vocab_size = vocab_size

    def handle(self, channel: Channel, read: Callable[[], Incoming]) -> None:
        """Read and admit one request, or answer it with an error. Never raises and never waits."""
        error = attempt(lambda: self._handle(read()))
        if error is None:
            return
        failure = attempt(lambda: channel.fail(error))
        if failure:
            _log.error("a refused request could not be answered", exc_info=failure)

    def close(self, drain_s: float) -> None:
        """Let running requests finish, end the others, and send everything."""
        self._engine.close(drain_s)
        self._responder.close()

    def _handle(self, incoming: Incoming) -> None:
        if len(incoming.client_id) > MAX_ID_CHARS:
            raise RequestError(
                f"the request id has {len(incoming.client_id)} characters; at most {MAX_ID_CHARS} may be."
            )
        values = decode_inputs(incoming.tensors, RUNTIME_INPUTS)
        prompt = _prompt(values)
        if prompt is None:
            self._stop(incoming)
            return
        check_prompt(prompt, self._vocab_size)
        prompt = _with_timeout(prompt, incoming.timeout_s)
        # Triton passes cancellation on to a model addressed directly, never through the ensemble.
        stream = self._responder.open(incoming.client_id, incoming.channel, is_watched="prepared" not in values)
        stream.is_streamed = prompt.stream
        stream.wants_logprobs = prompt.sampling.logprobs >= 0
        self._submit(Request(id=stream.engine_id, prompt=prompt), stream)

    def _submit(self, request: Request, stream: OutStream) -> None:
        error = attempt(lambda: self._engine.submit(request, stream))
        if error:
            self._responder.drop(stream)
            raise error

    def _stop(self, incoming: Incoming) -> None:
        if not incoming.client_id:
            raise RequestError("stop needs the request id of the running request that it ends. Send the same id.")
        self._engine.cancel(self._responder.find(incoming.client_id))
        chunk = Chunk(
            request_id=incoming.client_id, index=0, token_ids=(), text_ids=(), skip_bytes=0, keep_bytes=0,
            usage=Usage(num_input_tokens=0, num_output_tokens=0), finish_reason=FinishReason.CANCELLED,
        )  # fmt: skip
        incoming.channel.send(encode_chunk(chunk, 0, wants_logprobs=False), is_final=True)


def _prompt(values: Mapping[str, Value]) -> Prompt | None:
    """The prompt that the tokenizer prepared or that the client spelt out itself; None means stop."""
    if values.get("stop"):
        return None
    ids = values.get("input_ids", ())
    token_ids = tuple(int(item) for item in ids) if isinstance(ids, tuple) else ()
    prepared = values.get("prepared")
    if isinstance(prepared, str):
        return load_prompt(prepared, token_ids)
    if "input_ids" not in values:
        raise RequestError("input_ids is missing. Send token ids, or send text_input to the model dsv4.")
    return apply_options(Prompt(token_ids=token_ids), values)


def _with_timeout(prompt: Prompt, timeout_s: float | None) -> Prompt:
    if timeout_s is None:
        return prompt
    shorter = min(timeout_s, prompt.limits.timeout_s or timeout_s)
    return replace(prompt, limits=replace(prompt.limits, timeout_s=shorter))
