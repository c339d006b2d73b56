"""Whether the server still has work. Triton itself cannot say: an open gRPC stream counts as a request until its client
closes it, even when everything that it asked for was answered long ago."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

IDLE_S = 0.5  # the last words of a request need a moment from the runtime to its client
_GAUGES = ("dsv4_running_requests", "dsv4_waiting_requests")


class IdleWatch:
    """Asks for the metrics again and again; idle is what has been idle for IDLE_S.

    Rule: a server without our gauges is never called idle.
    """

    def __init__(self, read_metrics: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._read_metrics = read_metrics
        self._clock = clock
        self._since_s: float | None = None

    def is_idle(self) -> bool:
        """Look once."""
        if has_requests(self._read_metrics()):
            self._since_s = None
            return False
        now_s = self._clock()
        if self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s >= IDLE_S


def has_requests(metrics: str) -> bool:
    """Tell from the text of /metrics whether a request runs or waits; yes when it does not say."""
    values = [re.search(rf"^{name} (\S+)$", metrics, re.MULTILINE) for name in _GAUGES]
    return any(value is None or float(value[1]) > 0 for value in values)
