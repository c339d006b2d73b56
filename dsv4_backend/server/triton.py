"""The only file that touches Triton's Python API: requests, responses, errors, metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from dsv4_backend.errors import AlreadyRunningError, Dsv4Error, NotFoundError, OverloadedError, RequestError
from dsv4_backend.server.codec import Array
from dsv4_backend.server.metrics import Labels, counter_families, gauge_families
from dsv4_backend.server.runtime import Incoming

# The first match decides; everything else is INTERNAL.
_CODES = (
    (AlreadyRunningError, "ALREADY_EXISTS"),
    (RequestError, "INVALID_ARG"),
    (NotFoundError, "NOT_FOUND"),
    (OverloadedError, "UNAVAILABLE"),
)
_log = logging.getLogger(__name__)


class TritonChannel:
    """The response sender of one request to a decoupled model."""

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()

    def send(self, arrays: dict[str, Array], *, is_final: bool) -> None:
        """Send one response."""
        self._sender.send(make_response(arrays), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if is_final else 0)

    def fail(self, error: Exception) -> None:
        """Send an error as the first and final response."""
        self._sender.send(make_error_response(error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self) -> bool:
        """Whether the client took its request back or is gone."""
        return bool(self._sender.is_cancelled())


class TritonMetricWriter:
    """Metric families of this process; a family that is not referenced vanishes from /metrics."""

    def __init__(self) -> None:
        families = [(name, about, pb_utils.MetricFamily.COUNTER) for name, about in counter_families().items()]
        families += [(name, about, pb_utils.MetricFamily.GAUGE) for name, about in gauge_families().items()]
        self._families = {
            name: pb_utils.MetricFamily(name=name, description=about, kind=kind) for name, about, kind in families
        }
        self._metrics: dict[tuple[str, Labels], Any] = {}

    def increment(self, name: str, labels: Labels, amount: float) -> None:
        """Add to a counter."""
        self._metric(name, labels).increment(amount)

    def set(self, name: str, labels: Labels, value: float) -> None:
        """Set a gauge."""
        self._metric(name, labels).set(value)

    def _metric(self, name: str, labels: Labels) -> Any:
        if (name, labels) not in self._metrics:
            self._metrics[name, labels] = self._families[name].Metric(labels=dict(labels))
        return self._metrics[name, labels]


def input_arrays(request: Any) -> dict[str, Array]:
    """Return the inputs that the client sent, by name."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def read_incoming(request: Any, channel: TritonChannel) -> Incoming:
    """Return a decoupled model's request without Triton's types. Triton counts its timeout in µs; 0 is none."""
    timeout_us = request.timeout()
    return Incoming(
        client_id=request.request_id(),
        tensors=input_arrays(request),
        channel=channel,
        timeout_s=timeout_us / 1e6 if timeout_us else None,
    )


def make_response(arrays: Mapping[str, Array]) -> Any:
    """Return an InferenceResponse."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays.items()])


def make_error_response(error: Exception) -> Any:
    """Return an InferenceResponse that carries an error. What we did not raise on purpose is logged, not sent."""
    code = next((name for kind, name in _CODES if isinstance(error, kind)), "INTERNAL")
    message = str(error)
    if not isinstance(error, Dsv4Error):
        _log.error("a request failed", exc_info=error)
        message = f"internal error ({type(error).__name__}); the server's log has the details."
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code)))
