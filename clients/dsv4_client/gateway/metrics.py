"""The gateway's own counters, in Prometheus' text form."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from dsv4_backend.records import Usage

_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class GatewayMetrics:
    """Counts what passes; one event loop, so no lock."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._totals: Counter[str] = Counter()
        self._first_s = [0] * (len(_BOUNDS_S) + 1)
        self._first_sum_s = 0.0
        self.num_running = 0

    def request(self, path: str, status: int) -> None:
        """Count an answered request; path is a route of ours, never a client's text."""
        self._requests[path, status] += 1

    def first_token(self, waited_s: float) -> None:
        """Note the time from a request to its first tokens."""
        self._first_s[bisect_left(_BOUNDS_S, waited_s)] += 1
        self._first_sum_s += waited_s

    def finished(self, usage: Usage | None) -> None:
        """Count the tokens of a finished answer."""
        if usage is not None:
            self._totals["prompt_tokens"] += usage.num_input_tokens
            self._totals["cached_tokens"] += usage.num_cached_tokens
            self._totals["output_tokens"] += usage.num_output_tokens

    def left(self) -> None:
        """Count a client that went away before its answer was whole."""
        self._totals["disconnects"] += 1

    def stalled(self) -> None:
        """Count a client that was ended because it did not read."""
        self._totals["stalls"] += 1

    def render(self) -> str:
        """Return all series."""
        lines = ["# TYPE dsv4_gateway_requests_total counter"]
        lines += [
            f'dsv4_gateway_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self._requests.items())
        ]
        for name in ("prompt_tokens", "cached_tokens", "output_tokens", "disconnects", "stalls"):
            lines += [f"# TYPE dsv4_gateway_{name}_total counter", f"dsv4_gateway_{name}_total {self._totals[name]}"]
        lines += ["# TYPE dsv4_gateway_running_requests gauge", f"dsv4_gateway_running_requests {self.num_running}"]
        return "\n".join([*lines, *self._histogram()]) + "\n"

    def _histogram(self) -> list[str]:
        name = "dsv4_gateway_first_token_seconds"
        lines, total = [f"# TYPE {name} histogram"], 0
        for bound, count in zip((*map(str, _BOUNDS_S), "+Inf"), self._first_s, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self._first_sum_s:.6f}", f"{name}_count {total}"]
