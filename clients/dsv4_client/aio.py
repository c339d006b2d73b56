"""The asyncio twin of `stream`: the same requests, events and errors, for programs that hold many streams at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
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
from dsv4_client.events import Event, Final
from dsv4_client.options import Options
from dsv4_client.stream import CHANNEL_OPTIONS, DEFAULT_URL, ENSEMBLE, PROBE_S, RUNTIME, STOP_PAUSE_S, STOP_S
from dsv4_client.wire import PromptLike, build_request, build_stop, is_token_ids, read_reply


class AsyncClient:
    """A connection to one server, for one event loop."""

    def __init__(self, url: str = DEFAULT_URL, *, model: str = ENSEMBLE, runtime: str = RUNTIME) -> None:
        self.url = url.removeprefix("grpc://")
        self.model = model
        self.runtime = runtime
        self._channel = grpc.aio.insecure_channel(self.url, options=CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        """Use as a context."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self.close()

    async def close(self) -> None:
        """Close the connection; generators that are still open must be closed before."""
        await self._channel.close()

    async def generate(
        self,
        prompt: PromptLike,
        *,
        protocol: str = "chat",
        request_id: str = "",
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Event, None]:
        """Start a request and yield its events; closing the generator before `Final` stops the request.

        Rule:   `headers` go to the server as gRPC metadata, such as the `traceparent` of a trace.
        Raises: the errors of `dsv4_client.errors`.
        """
        model = self.runtime if is_token_ids(prompt) else self.model
        request_id = request_id or uuid.uuid4().hex
        message = build_request(model, request_id, prompt, protocol, options)
        backstop_s = None if timeout_s is None else timeout_s + 2 * STOP_S  # the timer ends it before, in good order
        call = self._stub.ModelStreamInfer(_once(message), timeout=backstop_s, metadata=tuple((headers or {}).items()))
        progress = _Progress(call=call, model=model, request_id=request_id)
        timer = None if timeout_s is None else asyncio.create_task(self._expire(progress, timeout_s))
        try:
            async for event in self._events(progress):
                is_cancelled = isinstance(event, Final) and event.finish_reason is FinishReason.CANCELLED
                if timeout_s is not None and progress.is_expired and is_cancelled:
                    raise DeadlineError(timeout_s, progress.usage.num_output_tokens)
                yield event
        finally:
            if timer is not None:
                timer.cancel()
            if not progress.is_over:
                await self._close(progress)

    async def cancel(self, request_id: str, *, model: str = "", timeout_s: float = STOP_S) -> None:
        """End the running request of that id, sent to `model` (the ensemble by default). Raises: NotFoundError."""
        model = model or self.model
        call = self._stub.ModelStreamInfer(_once(build_stop(model, request_id)), timeout=timeout_s)
        try:
            messages = [response.error_message async for response in call if response.error_message]
        except grpc.aio.AioRpcError as error:
            raise await self._explain(error.code().name, error.details() or "", model) from None
        if messages:
            raise await self._explain("", messages[0], model)

    async def is_ready(self) -> bool:
        """Tell whether the server answers and serves the ensemble."""
        try:
            answer = await self._stub.ModelReady(service_pb2.ModelReadyRequest(name=self.model), timeout=PROBE_S)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.ready)

    async def settings(self) -> dict[str, str]:
        """Return the text parameters of the runtime's configuration. Raises: the errors of `dsv4_client.errors`."""
        try:
            found = await self._stub.ModelConfig(service_pb2.ModelConfigRequest(name=self.runtime), timeout=PROBE_S)
        except grpc.aio.AioRpcError as error:
            raise await self._explain(error.code().name, error.details() or "", self.runtime) from None
        return {name: value.string_value for name, value in found.config.parameters.items()}

    async def _events(self, progress: _Progress) -> AsyncGenerator[Event, None]:
        """Yield the events of a stream; the last ones only after its status has been read."""
        last: list[Event] = []
        message = ""
        try:
            while (response := await progress.read()) is not grpc.aio.EOF:
                if progress.is_over:  # nothing but the status may follow
                    continue
                message = response.error_message
                reply = read_reply(response.infer_response)
                progress.usage = reply.usage if not message else progress.usage
                progress.is_over = bool(message) or reply.finish_reason is not None
                if progress.is_over:
                    last = reply.events()
                    continue
                for event in reply.events():
                    yield event
        except grpc.aio.AioRpcError as error:
            progress.is_over = True
            if error.code() is grpc.StatusCode.CANCELLED:
                last = last or [Final(finish_reason=FinishReason.CANCELLED, usage=progress.usage)]
            elif not last:
                raise await self._failure(error, progress) from None
        if message:
            raise await self._explain("", message, progress.model)
        if not progress.is_over:
            progress.is_over = True
            raise BrokenStreamError(self.url, "the server closed it without a final response", progress.num_tokens)
        for event in last:
            yield event

    async def _expire(self, progress: _Progress, timeout_s: float) -> None:
        """End a request whose time has passed."""
        await asyncio.sleep(timeout_s)
        progress.is_expired = True
        with contextlib.suppress(Dsv4Error):
            await self._stop(progress)

    async def _stop(self, progress: _Progress) -> None:
        """Ask the server to end a request. A stop can overtake its request: it is repeated for a while."""
        deadline = time.monotonic() + STOP_S
        while True:
            try:
                await self.cancel(progress.request_id, model=progress.model)
                return
            except NotFoundError:
                if progress.call.done() or time.monotonic() >= deadline:
                    return
                await asyncio.sleep(STOP_PAUSE_S)

    async def _close(self, progress: _Progress) -> None:
        """Stop a request whose reader has left, and read its stream to the end (see `Generation.close`)."""
        try:
            with contextlib.suppress(Dsv4Error, grpc.aio.AioRpcError, TimeoutError):
                await self._stop(progress)
                async with asyncio.timeout(STOP_S):
                    while await progress.read() is not grpc.aio.EOF:
                        pass
        finally:
            progress.call.cancel()  # does nothing to a stream that has ended

    async def _failure(self, error: grpc.aio.AioRpcError, progress: _Progress) -> Dsv4Error:
        code, details = error.code().name, error.details() or ""
        if progress.num_tokens and code in ("UNAVAILABLE", "INTERNAL", "UNKNOWN"):
            return BrokenStreamError(self.url, details, progress.num_tokens)
        return await self._explain(code, details, progress.model)

    async def _explain(self, code: str, message: str, model: str) -> Dsv4Error:
        if names_missing_model(message):
            return ModelNotReadyError(self.url, model, message)
        if not code:
            return refusal(message)
        if code != "UNAVAILABLE":
            return Dsv4Error(f"the server at {self.url} answered {code}: {message}")
        try:
            answer = await self._stub.ModelReady(service_pb2.ModelReadyRequest(name=model), timeout=PROBE_S)
        except grpc.aio.AioRpcError:
            return ServerUnreachableError(self.url, message)
        return BrokenStreamError(self.url, message, 0) if answer.ready else ModelNotReadyError(self.url, model, message)


@dataclass(slots=True, kw_only=True)
class _Progress:
    """A running request and how far it has come."""

    call: grpc.aio.StreamStreamCall
    model: str
    request_id: str
    usage: Usage = field(default_factory=lambda: Usage(num_input_tokens=0, num_output_tokens=0))
    is_over: bool = False
    is_expired: bool = False
    reading: asyncio.Future[service_pb2.ModelStreamInferResponse] | None = None

    async def read(self) -> service_pb2.ModelStreamInferResponse:
        """Return the next response, or grpc.aio.EOF.

        Rule: cancelling the reader does not cancel the call, which must be stopped by its id and read to its end.
        """
        if self.reading is None:
            self.reading = asyncio.ensure_future(self.call.read())
        try:
            return await asyncio.shield(self.reading)
        finally:
            if self.reading.done():
                self.reading = None

    @property
    def num_tokens(self) -> int:
        """Tokens received so far."""
        return self.usage.num_output_tokens


async def _once(message: service_pb2.ModelInferRequest) -> AsyncGenerator[service_pb2.ModelInferRequest, None]:
    yield message
