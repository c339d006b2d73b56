"""Every error that the project raises on purpose.

    Dsv4Error
    ├── ConfigError          a setting or a model config is wrong          load refused
    ├── CheckpointError      tensors are missing, extra, misshapen …      load refused, every problem listed
    ├── RequestError         the client's mistake                          INVALID_ARG
    │   ├── AlreadyRunningError  the request id is in use              ALREADY_EXISTS
    │   └── ConstraintError  a grammar cannot be compiled                  INVALID_ARG
    ├── NotFoundError        `stop` names no running request               NOT_FOUND
    ├── OverloadedError      the queue is full, or we are draining         UNAVAILABLE, with a retry hint
    ├── ShapeError           an operator was called with the wrong shape   a bug of ours
    ├── LaunchError          tritonserver did not start, or ended by itself exit code 1, with the end of its log
    └── ExecutorLostError    a rank died or stopped answering              healed by a restart

A message gives the value, the limit and the fix, in that order.
"""

from __future__ import annotations

from collections.abc import Sequence


class Dsv4Error(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(Dsv4Error):
    """A setting, a command-line value or a model config cannot be used."""


class CheckpointError(Dsv4Error):
    """A checkpoint does not match its config; `problems` lists every finding, not only the first."""

    def __init__(self, path: str, problems: Sequence[str]) -> None:
        self.path = path
        self.problems = tuple(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{path}: {len(self.problems)} problem(s)\n{lines}")


class RequestError(Dsv4Error):
    """The request cannot be served as it stands; the client must change it."""


class ConstraintError(RequestError):
    """The output constraint is malformed or cannot be enforced."""


class AlreadyRunningError(RequestError):
    """The request id is that of a running request."""


class NotFoundError(Dsv4Error):
    """The request id named by the client is not running here."""


class OverloadedError(Dsv4Error):
    """The request is fine but cannot be admitted now.

    Units: retry_after_s in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"{message} Retry after {retry_after_s:g} s.")


class ShapeError(Dsv4Error):
    """An operator got a tensor of the wrong shape or type."""


class LaunchError(Dsv4Error):
    """tritonserver did not become ready, or ended by itself."""


class ExecutorLostError(Dsv4Error):
    """A rank process died, or did not answer within its time limit."""
