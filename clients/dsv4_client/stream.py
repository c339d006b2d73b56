"""The streaming client: `Client.generate` starts a request and yields its events; leaving the loop early stops it.

Each request has a gRPC stream of its own, and all of them share one connection: any number of threads may generate at
once, and a broken or cancelled stream touches no other. A request is stopped by a second request with the same id, and
its stream is read to the end: Triton passes no cancellation on through an ensemble, and where it does (the runtime
addressed directly) a cancellation that meets the completion of its request makes Triton 2.51 lose count of requests.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Self, Unpack

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from dsv4_backend.errors import Dsv4Error, NotFoundError
from dsv4_backend.records import FinishReason, Usage
from dsv4_client.errors import (
    BrokenStreamError,
    DeadlineError,
    ModelNotReadyError,
    ServerUnreachableError,
    names_missing_model,
    refusal,
)
from dsv4_client.events import Answer, Event, Final, join_events
from dsv4_client.options import Options
from dsv4_client.wire import PromptLike, build_request, build_stop, is_token_ids, read_reply

DEFAULT_URL = "127.0.0.1:8001"
ENSEMBLE = "dsv4"
RUNTIME = "dsv4_runtime"
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
PROBE_S = 2.0
# A stop can overtake its request, which is still being tokenised: it is repeated for so long.
STOP_S = 2.0
STOP_PAUSE_S = 0.01
_READY_PAUSE_S = 0.05


class Client:
    """A connection to one server. Close it, or use it in a `with` statement: that stops what is still running."""

    def __init__(self, url: str = DEFAULT_URL, *, model: str = ENSEMBLE, runtime: str = RUNTIME) -> None:
        self.url = url.removeprefix("grpc://")
        self.model = model
        self.runtime = runtime
        self._channel = grpc.insecure_channel(self.url, options=CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._running: weakref.WeakSet[Generation] = weakref.WeakSet()

    def __enter__(self) -> Self:
        """Use as a context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop what still runs and close the connection."""
        self.close()

    def close(self) -> None:
        """Stop every running request of this client and close the connection."""
        for generation in list(self._running):
            generation.close()
        self._channel.close()

    def generate(
        self,
        prompt: PromptLike,
        *,
        protocol: str = "chat",
        request_id: str = "",
        timeout_s: float | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """Start a request and return its stream of events.

        Rule:   text and API bodies (`protocol` chat, responses or messages) go through the ensemble, token ids to the
                runtime. An empty request_id is replaced by a fresh one.
        Raises: RequestError at once for a bad option; the stream itself raises what the server refuses.
        """
        model = self.runtime if is_token_ids(prompt) else self.model
        request_id = request_id or uuid.uuid4().hex
        message = build_request(model, request_id, prompt, protocol, options)
        backstop_s = None if timeout_s is None else timeout_s + 2 * STOP_S  # the timer ends it before, in good order
        call = self._stub.ModelStreamInfer(iter([message]), timeout=backstop_s)
        generation = Generation(self, call, request_id, model, timeout_s)
        self._running.add(generation)
        return generation

    def complete(
        self,
        prompt: PromptLike,
        *,
        protocol: str = "chat",
        request_id: str = "",
        timeout_s: float | None = None,
        **options: Unpack[Options],
    ) -> Answer:
        """Run a request as a single response (`stream=false`) and return the whole answer."""
        options["stream"] = False
        with self.generate(
            prompt, protocol=protocol, request_id=request_id, timeout_s=timeout_s, **options
        ) as generation:
            return join_events(generation)

    def cancel(self, request_id: str, *, model: str = "", timeout_s: float = STOP_S) -> None:
        """End the running request of that id; its own stream then ends with `cancelled`.

        Rule:   model is the one that the request was sent to: the ensemble by default.
        Raises: NotFoundError when no such request is running.
        """
        model = model or self.model
        call = self._stub.ModelStreamInfer(iter([build_stop(model, request_id)]), timeout=timeout_s)
        try:
            messages = [response.error_message for response in call if response.error_message]
        except grpc.RpcError as error:
            raise self.explain(error.code().name, error.details() or "", model) from None
        if messages:
            raise self.explain("", messages[0], model)

    def check_ready(self) -> None:
        """Return if the server serves the ensemble. Raises: ServerUnreachableError or ModelNotReadyError."""
        try:
            answer = self._stub.ModelReady(service_pb2.ModelReadyRequest(name=self.model), timeout=PROBE_S)
        except grpc.RpcError as error:
            raise self.explain(error.code().name, error.details() or "", self.model) from None
        if not answer.ready:
            raise ModelNotReadyError(self.url, self.model, "it is not loaded")

    def wait_ready(self, timeout_s: float) -> None:
        """Return as soon as the ensemble is served. Raises: as check_ready does, once timeout_s has passed."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.check_ready()
                return
            except (ServerUnreachableError, ModelNotReadyError):
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_READY_PAUSE_S)

    def explain(self, code: str, message: str, model: str) -> Dsv4Error:
        """Return the error that a gRPC status, or the server's text (code ""), stands for.

        Rule: a status says that the connection or Triton failed; where it does not say what, the server is asked.
        """
        if names_missing_model(message):
            return ModelNotReadyError(self.url, model, message)
        if not code:
            return refusal(message)
        if code != "UNAVAILABLE":
            return Dsv4Error(f"the server at {self.url} answered {code}: {message}")
        try:
            ready = self._stub.ModelReady(service_pb2.ModelReadyRequest(name=model), timeout=PROBE_S).ready
        except grpc.RpcError:
            return ServerUnreachableError(self.url, message)
        return BrokenStreamError(self.url, message, 0) if ready else ModelNotReadyError(self.url, model, message)


class Generation(Iterator[Event]):
    """One running request: an iterator over its events, ending after `Final`.

    Rule: leaving the loop before Final (break, exception, Ctrl-C, `close`, garbage collection) stops the request.
    """

    def __init__(self, client: Client, call: grpc.Call, request_id: str, model: str, timeout_s: float | None) -> None:
        self.request_id = request_id
        self._client = client
        self._call = call
        self._model = model
        self._timeout_s = timeout_s
        self._pending: deque[Event] = deque()
        self._usage = Usage(num_input_tokens=0, num_output_tokens=0)
        self._is_over = False
        self._is_expired = False
        self._reading = threading.Lock()
        self._timer = _start_timer(self, timeout_s)

    def __enter__(self) -> Self:
        """Use as a context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the request unless it has ended."""
        self.close()

    def __del__(self) -> None:
        """Stop an abandoned request."""
        self.close()

    def __next__(self) -> Event:
        """Return the next event. Raises: the errors of `dsv4_client.errors`."""
        while not self._pending:
            if self._is_over:
                raise StopIteration
            try:
                self._receive()
            except BaseException:  # Ctrl-C too: nobody will read on
                self.close()
                raise
        return self._pending.popleft()

    def cancel(self) -> None:
        """Ask the server to end the request; the stream goes on until its Final."""
        deadline = time.monotonic() + STOP_S
        while not self._is_over:
            try:
                self._client.cancel(self.request_id, model=self._model)
                return
            except NotFoundError:
                if not self._call.is_active() or time.monotonic() >= deadline:
                    return
                time.sleep(STOP_PAUSE_S)

    def close(self) -> None:
        """Stop the request, if it still runs, and drop what it had to say.

        Rule: the stopped stream is read to its end; it is cancelled only when that takes longer than STOP_S.
        """
        if self._is_over:
            return
        watchdog = threading.Timer(STOP_S, self._call.cancel)
        watchdog.daemon = True
        try:
            with contextlib.suppress(Dsv4Error):
                self.cancel()
                watchdog.start()
                while not self._is_over:
                    self._receive()
        finally:
            watchdog.cancel()
            self._finish()
            self._call.cancel()  # does nothing to a stream that has ended

    def expire(self) -> None:
        """End a request whose time has passed: its reader gets a DeadlineError."""
        self._is_expired = True
        with contextlib.suppress(Dsv4Error):
            self.cancel()

    def _receive(self) -> None:
        with self._reading:
            if self._is_over:
                return
            try:
                response = next(self._call)
            except StopIteration:
                raise self._broken("the server closed it without a final response") from None
            except grpc.RpcError as error:
                self._end(error.code().name, error.details() or "")
                return
            if response.error_message:
                self._drain()
                raise self._client.explain("", response.error_message, self._model)
            reply = read_reply(response.infer_response)
            self._usage = reply.usage
            if reply.finish_reason is not None:
                self._drain()
                self._check_expired(reply.finish_reason)
            self._pending.extend(reply.events())

    def _drain(self) -> None:
        """Read the status behind the final response."""
        with contextlib.suppress(grpc.RpcError):
            for _ in self._call:
                pass
        self._finish()

    def _finish(self) -> None:
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()

    def _end(self, code: str, message: str) -> None:
        """Turn a status into the end of the stream. Raises: unless it answers a cancellation of our own."""
        self._finish()
        if code == "CANCELLED":
            self._check_expired(FinishReason.CANCELLED)
            self._pending.append(Final(finish_reason=FinishReason.CANCELLED, usage=self._usage))
            return
        if code == "DEADLINE_EXCEEDED" and self._timeout_s is not None:
            raise DeadlineError(self._timeout_s, self._usage.num_output_tokens) from None
        if self._usage.num_output_tokens and code in ("UNAVAILABLE", "INTERNAL", "UNKNOWN"):
            raise self._broken(message) from None
        raise self._client.explain(code, message, self._model) from None

    def _check_expired(self, reason: FinishReason) -> None:
        if self._is_expired and self._timeout_s is not None and reason is FinishReason.CANCELLED:
            raise DeadlineError(self._timeout_s, self._usage.num_output_tokens) from None

    def _broken(self, details: str) -> BrokenStreamError:
        self._finish()
        return BrokenStreamError(self._client.url, details, self._usage.num_output_tokens)


def _start_timer(generation: Generation, timeout_s: float | None) -> threading.Timer | None:
    """Start the clock of a request. It keeps no reference, so that an abandoned generation is still collected."""
    if timeout_s is None:
        return None
    timer = threading.Timer(timeout_s, _expire, args=(weakref.ref(generation),))
    timer.daemon = True
    timer.start()
    return timer


def _expire(reference: weakref.ref[Generation]) -> None:
    generation = reference()
    if generation is not None:
        generation.expire()
