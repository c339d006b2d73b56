"""What one check of one client found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One check. `why` says what went wrong. Not required is what the bundled model, not the server, decides."""

    name: str
    ok: bool
    seconds: float
    why: str = ""
    is_required: bool = True


@dataclass(frozen=True)
class Client:
    """One client: its version, what it was asked, and what it cannot be asked."""

    name: str
    version: str
    checks: tuple[Check, ...]
    not_offered: tuple[str, ...] = ()


def timed(name: str, run: Callable[[], str], *, is_required: bool = True) -> Check:
    """Run one check; it returns what went wrong, or an empty string."""
    started_s = time.monotonic()
    try:
        why = run()
    except Exception as error:  # whatever a client's failure looks like, it is reported
        why = f"{type(error).__name__}: {error}"[:600]
    return Check(name, not why, round(time.monotonic() - started_s, 1), why, is_required)
