"""The one broad `except` of the server side: at the ends of threads that must go on and answer, whatever fails."""

from __future__ import annotations

from collections.abc import Callable


def attempt(action: Callable[[], None]) -> Exception | None:
    """Run an action; return what it raised, or None."""
    try:
        action()
    except Exception as error:
        return error
    return None
