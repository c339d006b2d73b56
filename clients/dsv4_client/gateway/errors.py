"""Failures as HTTP: a status, and a body in the form of the API that was called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dsv4_backend.errors import Dsv4Error, NotFoundError, OverloadedError, RequestError
from dsv4_client.errors import DeadlineError, ModelNotReadyError, ServerUnreachableError

_OPENAI_TYPES = {
    401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 500: "server_error",
    503: "service_unavailable_error",
}  # fmt: skip
_ANTHROPIC_TYPES = {
    401: "authentication_error", 404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
    500: "api_error", 503: "overloaded_error",
}  # fmt: skip
# A failed answer is told in text. What a rank finds while compiling is the client's to mend, a broken rank is not.
_CLIENTS_FAULT = re.compile(r"constraint (cannot be compiled|allows no token)")
_OUR_FAULT = re.compile(r"the model failed|rank \d+ (failed|died)")


@dataclass(slots=True)
class ApiError(Exception):
    """A failure that a client may read."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def headers(self) -> dict[str, str]:
        """What belongs beside the status."""
        return {} if self.retry_after_s is None else {"retry-after": f"{max(1, round(self.retry_after_s))}"}

    def openai(self) -> dict[str, Any]:
        """The body that OpenAI's APIs use."""
        kind = _OPENAI_TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code or kind}}

    def anthropic(self) -> dict[str, Any]:
        """The body that Anthropic's API uses."""
        kind = _ANTHROPIC_TYPES.get(self.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def body(self, path: str) -> dict[str, Any]:
        """The body for the API that a path belongs to."""
        is_anthropic = path.startswith(("/v1/messages", "/anthropic/"))
        return self.anthropic() if is_anthropic else self.openai()


def as_api_error(error: Exception) -> ApiError:
    """Return what a client may know of a failure. What is not raised on purpose is a bug, and stays in the log."""
    match error:
        case ApiError():
            return error
        case OverloadedError():
            return ApiError(503, str(error), "overloaded", retry_after_s=error.retry_after_s)
        case RequestError():
            return failed(str(error)) if _OUR_FAULT.search(str(error)) else ApiError(400, str(error))
        case NotFoundError():
            return ApiError(404, str(error))
        case ServerUnreachableError() | ModelNotReadyError():
            return ApiError(503, "the model server is not ready. Try again soon.", "not_ready", retry_after_s=2.0)
        case DeadlineError():
            return ApiError(503, str(error), "time_limit", retry_after_s=1.0)
        case Dsv4Error():
            return ApiError(500, f"the answer broke off: {error}", "broken_stream")
    return ApiError(500, "an internal error happened; the gateway's log has it under this request id.", "internal")


def failed(message: str) -> ApiError:
    """Return the error of a stream that the runtime ended with a reason."""
    if _CLIENTS_FAULT.search(message):
        return ApiError(400, message, "constraint")
    return ApiError(500, "the model failed on this request; the server's log tells why.", "model_failed")


def cancelled() -> ApiError:
    """Return the error of a stream that was ended from outside."""
    return ApiError(503, "the request was ended by the server before its answer was whole. Send it again.", "cancelled",
                    retry_after_s=1.0)  # fmt: skip
