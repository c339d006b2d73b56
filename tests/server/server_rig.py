"""Scripted stand-ins for Triton and the engine, and a plain tritonclient reader for the real server."""

from __future__ import annotations

import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient

from dsv4_backend.engine.stream import ChunkSink
from dsv4_backend.errors import NotFoundError
from dsv4_backend.launcher import Server
from dsv4_backend.records import Chunk, FinishReason, Request, Usage
from dsv4_backend.server.wire import CLIENT_INPUTS, RUNTIME_INPUTS, Dtype

WAIT_S = 20.0
Start = Callable[[Mapping[str, str]], AbstractContextManager[Server]]
DTYPES = {item.name: item.dtype for item in (*CLIENT_INPUTS, *RUNTIME_INPUTS)}


def make_chunk(*ids: int, reason: FinishReason | None = None, error: str = "", index: int = 0) -> Chunk:
    """A chunk whose text is its ids, one byte each."""
    return Chunk(
        request_id="r", index=index, token_ids=ids, text_ids=ids, skip_bytes=0, keep_bytes=len(ids),
        usage=Usage(num_input_tokens=3, num_output_tokens=len(ids)), finish_reason=reason, error=error,
    )  # fmt: skip


class FakeChannel:
    """Remembers what was sent; `ended` is set by the final response."""

    def __init__(self) -> None:
        self.sent: list[tuple[dict[str, Any], bool]] = []
        self.errors: list[Exception] = []
        self.num_finals = 0
        self.is_gone = False
        self.num_failures = 0  # sends that fail from now on
        self.ended = threading.Event()
        self.first = threading.Event()

    def send(self, arrays: dict[str, Any], *, is_final: bool) -> None:
        if self.num_failures:
            self.num_failures -= 1
            raise RuntimeError("the pipe broke")
        self.sent.append((arrays, is_final))
        self.first.set()
        self._end(is_final)

    def fail(self, error: Exception) -> None:
        self.errors.append(error)
        self._end(True)

    def is_cancelled(self) -> bool:
        return self.is_gone

    def _end(self, is_final: bool) -> None:
        if is_final:
            self.num_finals += 1
            self.ended.set()

    @property
    def token_ids(self) -> list[int]:
        return [token for arrays, _ in self.sent for token in arrays["token_ids"].tolist()]

    def texts(self, name: str) -> list[str]:
        return [arrays[name][0].decode() for arrays, _ in self.sent]


class FakeEngine:
    """Admits everything, or raises `refusal`; the test plays the loop thread by calling the sinks."""

    def __init__(self) -> None:
        self.sinks: dict[str, ChunkSink] = {}
        self.requests: list[Request] = []
        self.refusal: Exception | None = None
        self.cancelled: list[str] = []
        self.drain_s: float | None = None

    def submit(self, request: Request, sink: ChunkSink) -> None:
        if self.refusal:
            raise self.refusal
        self.requests.append(request)
        self.sinks[request.id] = sink

    def cancel(self, request_id: str) -> None:
        if request_id not in self.sinks:
            raise NotFoundError(f"{request_id} is not running")
        self.cancelled.append(request_id)
        self.sinks.pop(request_id).put(make_chunk(reason=FinishReason.CANCELLED))

    def close(self, drain_s: float) -> None:
        self.drain_s = drain_s


@dataclass
class Reply:
    """All responses to one request."""

    responses: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    status: str = ""
    is_ended: bool = False

    def joined(self, name: str) -> str:
        return "".join(item[name][0].decode() for item in self.responses)

    def column(self, name: str) -> list[Any]:
        return [item[name][0] for item in self.responses]

    @property
    def token_ids(self) -> list[int]:
        return [int(token) for item in self.responses for token in item["token_ids"]]

    @property
    def finish_reason(self) -> str:
        return str(self.responses[-1]["finish_reason"][0].decode())


def make_inputs(values: Mapping[str, Any]) -> list[Any]:
    """Tensors of the declared types; a numpy array goes as it is."""
    return [_input(name, value) for name, value in values.items()]


def _input(name: str, value: Any) -> Any:
    dtype = DTYPES[name]
    if not isinstance(value, np.ndarray):
        values = value if isinstance(value, list) else [value]
        if dtype is Dtype.STRING:
            values = [item.encode() if isinstance(item, str) else item for item in values]
        value = np.array(values, dtype.numpy)
    kind = "BYTES" if dtype is Dtype.STRING else dtype.value
    tensor = grpcclient.InferInput(name, list(value.shape), kind)
    tensor.set_data_from_numpy(value)
    return tensor


class GrpcStream:
    """One gRPC stream of tritonclient."""

    def __init__(self, address: str) -> None:
        self.client = grpcclient.InferenceServerClient(address)
        self._queue: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self.client.start_stream(lambda result, error: self._queue.put((result, error)))

    def send(self, model: str, values: Mapping[str, Any], request_id: str = "", timeout_us: int | None = None) -> None:
        self.client.async_stream_infer(
            model, make_inputs(values), request_id=request_id, timeout=timeout_us, enable_empty_final_response=True
        )

    def read_one(self) -> tuple[str, dict[str, Any], bool, str]:
        """Return request id, outputs, whether it is the final one, and the error."""
        result, error = self._queue.get(timeout=WAIT_S)
        if error is not None:
            return "", {}, True, error.message()
        response = result.get_response()
        outputs = {item.name: result.as_numpy(item.name) for item in response.outputs}
        return response.id, outputs, response.parameters["triton_final_response"].bool_param, ""

    def read_all(self, num_requests: int = 1) -> dict[str, Reply]:
        """Read until every request has ended."""
        replies: dict[str, Reply] = {}
        while sum(reply.is_ended for reply in replies.values()) < num_requests:
            request_id, outputs, is_final, error = self.read_one()
            reply = replies.setdefault(request_id, Reply())
            if outputs:
                reply.responses.append(outputs)
            reply.error, reply.is_ended = error, is_final
        return replies

    def ask(self, model: str, values: Mapping[str, Any], request_id: str = "", timeout_us: int | None = None) -> Reply:
        self.send(model, values, request_id, timeout_us)
        (reply,) = self.read_all().values()
        return reply

    def close(self, *, is_cancelled: bool = False) -> None:
        self.client.stop_stream(cancel_requests=is_cancelled)
        self.client.close()


@contextmanager
def open_stream(address: str) -> Iterator[GrpcStream]:
    """A stream that is closed in the end."""
    stream = GrpcStream(address)
    try:
        yield stream
    finally:
        stream.close()


def wait_until(claim: Callable[[], bool], what: str) -> None:
    """Return as soon as the claim holds. Raises: AssertionError after WAIT_S."""
    deadline = time.monotonic() + WAIT_S
    while not claim():
        assert time.monotonic() < deadline, f"still not so after {WAIT_S:g} s: {what}"
        time.sleep(0.02)


def read_metrics(address: str) -> dict[str, float]:
    """Our series on /metrics, by name with labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=WAIT_S) as response:
        lines = response.read().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line.startswith("dsv4_")]
    return {name: float(value) for name, value in pairs}


def post(address: str, path: str, body: object) -> tuple[int, str]:
    """POST JSON; return status and text."""
    request = urllib.request.Request(f"http://{address}{path}", data=json.dumps(body).encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def is_idle(server: Server) -> bool:
    """Whether nothing runs, nothing waits, and no page is in use."""
    metrics = read_metrics(server.metrics_address)
    pages = sum(value for name, value in metrics.items() if name.startswith("dsv4_pages_used"))
    return metrics["dsv4_running_requests"] + metrics["dsv4_waiting_requests"] + pages == 0
