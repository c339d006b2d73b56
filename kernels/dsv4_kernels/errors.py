"""Errors that the operator package raises on purpose.

KernelError
├── ShapeError   an operator or a weight got a tensor of the wrong shape or type      a bug of the caller
├── FormatError  a quantised weight is malformed                                      a bad checkpoint
├── BuildError   the C++ twins cannot be compiled or loaded                           install a compiler
└── BindError    no implementation serves the asked-for target                        choose another
"""

from __future__ import annotations


class KernelError(Exception):
    """Base of all errors raised on purpose."""


class ShapeError(KernelError):
    """A tensor has the wrong shape or type."""


class FormatError(KernelError):
    """A quantised weight's codes and scales do not belong together."""


class BuildError(KernelError):
    """The C++ library cannot be built or loaded."""


class BindError(KernelError):
    """No implementation of an operator serves this target."""


def require(is_right: bool, message: str) -> None:
    """Raise ShapeError with `message` unless `is_right`."""
    if not is_right:
        raise ShapeError(message)
