"""Errors of the client, and how the server's text becomes one.

Dsv4Error
├── ServerUnreachableError   nothing answers at the address
├── ModelNotReadyError       a server answers, the model is absent or still loading
├── DeadlineError            the caller's timeout_s passed
├── BrokenStreamError        the stream ended without its final response
└── RequestError, NotFoundError, OverloadedError      the server's answer, as in dsv4_backend.errors
"""

from __future__ import annotations

import re

from dsv4_backend.errors import Dsv4Error, NotFoundError, OverloadedError, RequestError

_RETRY = re.compile(r"\s*Retry after ([0-9.]+) s\.$")
_UNKNOWN_ID = re.compile(r"^no request .* is running")
_MISSING_MODEL = re.compile(r"unknown model|not at ready state|not ready|Stub process .* is not healthy")
_PREFIX = re.compile(r"^(in ensemble '[^']*', |\[request id: [^\]]*\] )+")


class ServerUnreachableError(Dsv4Error):
    """No server answers at the address."""

    def __init__(self, url: str, details: str) -> None:
        super().__init__(
            f"no Triton server answers at {url} ({details}). Start one with `dsv4 serve` or `make serve`,"
            " or name another address with --url HOST:PORT."
        )


class ModelNotReadyError(Dsv4Error):
    """The server answers but does not serve the model (yet)."""

    def __init__(self, url: str, model: str, details: str) -> None:
        super().__init__(
            f"the server at {url} does not serve model {model} now ({details})."
            " Wait until it has loaded, or look at the server's log for the reason."
        )


class DeadlineError(Dsv4Error):
    """The caller's time limit passed before the answer was complete."""

    def __init__(self, timeout_s: float, num_tokens: int) -> None:
        super().__init__(
            f"the answer was not complete within timeout_s = {timeout_s:g} s ({num_tokens} tokens had arrived);"
            " the request was stopped. Allow more time or ask for fewer tokens."
        )


class BrokenStreamError(Dsv4Error):
    """The stream ended, or its connection broke, before the final response."""

    def __init__(self, url: str, details: str, num_tokens: int) -> None:
        super().__init__(f"the stream from {url} broke after {num_tokens} tokens: {details}")


def refusal(message: str) -> Dsv4Error:
    """Return the error that the server's text stands for.

    Rule: on a stream Triton sends text without a status. It can be made to send a status, by the header
          `triton_grpc_error`, but then 2.51 crashes now and then (3 times in fewer than 900 errors): the text must do.
    """
    message = _PREFIX.sub("", message)
    if _UNKNOWN_ID.search(message):
        return NotFoundError(message)
    hint = _RETRY.search(message)
    if hint:
        return OverloadedError(_RETRY.sub("", message), retry_after_s=float(hint.group(1)))
    return RequestError(message)


def names_missing_model(message: str) -> bool:
    """Whether Triton's text says that the model is not there, or that its process has died."""
    return _MISSING_MODEL.search(message) is not None
