"""The asyncio twin of `stream`: the same requests, events and errors, for programs that hold many streams at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator
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
from dsv4_client.stream import CHANNEL_OPTIONS, DEFAULT_URL, ENSEMBLE, METADATA, PROBE_S, RUNTIME, STOP_PAUSE_S, STOP_S
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
        **options: Unpack[Options],
    ) -> AsyncGenerator[Event, None]:
        """Start a request and yield its events; closing the generator before `Final` stops the request.

        Raises: the errors of `dsv4_client.errors`.
        """
        is_direct = is_token_ids(prompt)
        model = self.runtime if is_direct else self.model
        request_id = request_id or uuid.uuid4().hex
        message = build_request(model, request_id, prompt, protocol, options)
        call = self._stub.ModelStreamInfer(_once(message), metadata=METADATA, timeout=timeout_s)
        usage = Usage(num_input_tokens=0, num_output_tokens=0)
        is_over = False
        last: list[Event] = []
        try:
            async for response in call:
                if is_over:  # nothing but the status may follow; a stream dropped before it is an error in Triton's log
                    continue
                if response.error_message:
                    is_over = True
                    raise await self._explain("", response.error_message, model)
                reply = read_reply(response.infer_response)
                usage = reply.usage
                is_over = reply.finish_reason is not None
                if is_over:
                    last = reply.events()
                    continue
                for event in reply.events():
                    yield event
            if not is_over:
                is_over = True
                raise BrokenStreamError(
                    self.url, "the server closed it without a final response", usage.num_output_tokens
                )
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            is_over = is_over or code != "DEADLINE_EXCEEDED"
            if code == "CANCELLED":
                last = last or [Final(finish_reason=FinishReason.CANCELLED, usage=usage)]
            if not last:
                raise await self._failure(code, error.details() or "", model, usage, timeout_s) from None
        finally:
            if not is_over:
                await self._stop(call, None if is_direct else request_id)
        for event in last:
            yield event

    async def cancel(self, request_id: str, *, timeout_s: float = STOP_S) -> None:
        """End the ensemble's running request of that id. Raises: NotFoundError when there is none."""
        stop = build_stop(self.model, request_id)
        call = self._stub.ModelStreamInfer(_once(stop), metadata=METADATA, timeout=timeout_s)
        try:
            async for response in call:
                if response.error_message:
                    raise await self._explain("", response.error_message, self.model)
        except grpc.aio.AioRpcError as error:
            raise await self._explain(error.code().name, error.details() or "", self.model) from None

    async def _stop(self, call: grpc.aio.Call, request_id: str | None) -> None:
        """Stop a request whose reader has left; request_id is None for one that sees the gRPC cancellation."""
        deadline = time.monotonic() + STOP_S
        while request_id is not None and time.monotonic() < deadline:
            try:
                with contextlib.suppress(ServerUnreachableError):
                    await self.cancel(request_id)
                break
            except NotFoundError:
                if call.done():
                    break
                await asyncio.sleep(STOP_PAUSE_S)
        call.cancel()

    async def _failure(self, code: str, details: str, model: str, usage: Usage, timeout_s: float | None) -> Dsv4Error:
        num_tokens = usage.num_output_tokens
        if code == "DEADLINE_EXCEEDED" and timeout_s is not None:
            return DeadlineError(timeout_s, num_tokens)
        if num_tokens and code in ("UNAVAILABLE", "INTERNAL", "UNKNOWN"):
            return BrokenStreamError(self.url, details, num_tokens)
        return await self._explain(code, details, model)

    async def _explain(self, code: str, message: str, model: str) -> Dsv4Error:
        if names_missing_model(message):
            return ModelNotReadyError(self.url, model, message)
        if code != "UNAVAILABLE":
            return refusal(code, message)
        try:
            await self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=PROBE_S)
            answer = await self._stub.ModelReady(service_pb2.ModelReadyRequest(name=model), timeout=PROBE_S)
        except grpc.aio.AioRpcError:
            return ServerUnreachableError(self.url, message)
        return refusal(code, message) if answer.ready else ModelNotReadyError(self.url, model, message)


async def _once(message: service_pb2.ModelInferRequest) -> AsyncGenerator[service_pb2.ModelInferRequest, None]:
    yield message
