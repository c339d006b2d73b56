"""An in-process gRPC server that speaks Triton's inference protocol from a script. No model, no sleeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

WAIT_S = 10.0


def reply(
    text: str = "", ids: tuple[int, ...] = (), *, index: int = 0, reason: str = "", counts: tuple[int, int] = (3, 0),
    error: str = "", logprobs: str = "",
) -> service_pb2.ModelStreamInferResponse:  # fmt: skip
    """Return one response with every output of the contract; counts are input and output tokens."""
    message = service_pb2.ModelStreamInferResponse()
    texts = {"text_output": text, "finish_reason": reason, "error": error, "output_logprobs": logprobs}
    for name, value in texts.items():
        data = value.encode("utf-8")
        _output(message, name, "BYTES", len(data).to_bytes(4, "little") + data)
    numbers = {"token_ids": ids, "index": (index,), "num_input_tokens": counts[:1], "num_output_tokens": counts[1:],
               "num_cached_tokens": (0,)}  # fmt: skip
    for name, values in numbers.items():
        _output(message, name, "INT32", b"".join(value.to_bytes(4, "little", signed=True) for value in values))
    return message


def refuse(message: str) -> service_pb2.ModelStreamInferResponse:
    """Return an error as Triton sends it on a stream: text without a status."""
    return service_pb2.ModelStreamInferResponse(error_message=message)


def _output(message: service_pb2.ModelStreamInferResponse, name: str, datatype: str, data: bytes) -> None:
    output = message.infer_response.outputs.add()
    output.name = name
    output.datatype = datatype
    message.infer_response.raw_output_contents.append(data)


def _values(tensor: service_pb2.ModelInferRequest.InferInputTensor) -> list[object]:
    return [value for _, values in tensor.contents.ListFields() for value in values]


@dataclass
class Call:
    """One request as the server sees it."""

    inputs: dict[str, list[object]]
    request_id: str
    model: str
    context: grpc.ServicerContext
    stopped: threading.Event
    cancelled: threading.Event = field(default_factory=threading.Event)
    is_complete: bool = False


Replies = Iterator[service_pb2.ModelStreamInferResponse]
Script = Callable[[Call], Replies]


def count_to_three(call: Call) -> Replies:
    """Three tokens, then the end."""
    for index, text in enumerate("abc"):
        yield reply(text, (index + 10,), index=index, counts=(3, index + 1))
    yield reply("", (), index=3, reason="stop", counts=(3, 3))


def until_stopped(call: Call) -> Replies:
    """One token, then nothing until the request is stopped."""
    yield reply("a", (10,), counts=(3, 1))
    call.stopped.wait(WAIT_S)
    yield reply("", (), index=1, reason="cancelled", counts=(3, 1))


class FakeServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Runs `script` for each request; `stop` sets the event of the request of that id that runs in the same model."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[Call] = []
        self.is_ready = True
        self._running: dict[tuple[str, str], Call] = {}
        self._grpc = grpc.server(ThreadPoolExecutor(max_workers=80))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._grpc)
        self.url = f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        self._grpc.start()

    def close(self) -> None:
        """Stop at once."""
        self._grpc.stop(grace=None).wait(WAIT_S)

    def ServerLive(self, request: object, context: object) -> service_pb2.ServerLiveResponse:
        """Always alive."""
        return service_pb2.ServerLiveResponse(live=True)

    def ModelReady(self, request: object, context: object) -> service_pb2.ModelReadyResponse:
        """As the test set it."""
        return service_pb2.ModelReadyResponse(ready=self.is_ready)

    def ModelStreamInfer(
        self, request_iterator: Iterator[service_pb2.ModelInferRequest], context: grpc.ServicerContext
    ) -> Iterator[service_pb2.ModelStreamInferResponse]:
        """Run the script, or stop the script of the same id."""
        request = next(request_iterator)
        inputs = {tensor.name: _values(tensor) for tensor in request.inputs}
        if inputs.get("stop") == [True]:
            yield from self._stop(request)
            return
        call = Call(inputs, request.id, request.model_name, context, threading.Event())
        context.add_callback(call.cancelled.set)
        self.calls.append(call)
        self._running[request.model_name, request.id] = call
        yield from self.script(call)
        call.is_complete = True
        self._running.pop((request.model_name, request.id))  # stays when cancelled: an ensemble is not told

    def _stop(self, request: service_pb2.ModelInferRequest) -> Iterator[service_pb2.ModelStreamInferResponse]:
        call = self._running.get((request.model_name, request.id))
        if call is None:
            yield refuse(f"in ensemble 'dsv4', no request with id '{request.id}' is running")
            return
        call.stopped.set()
        yield reply(reason="stop")
