"""Find the first of several stop strings in a stream of bytes, in one pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from dsv4_backend.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class StopState:
    """What is known after the bytes so far.

    Units: hit_at is the absolute offset of the first byte of the match; pending counts trailing bytes that may still be
           the beginning of one.
    """

    hit_at: int | None = None
    pending: int = 0


_NOTHING = StopState()


class StopMatcher:
    """An Aho–Corasick automaton over bytes.

    Rule: the match that completes first wins; of those that complete at the same byte, the one that begins earliest.
    Raises: RequestError for an empty stop string.
    """

    def __init__(self, stops: Sequence[bytes]) -> None:
        if any(not stop for stop in stops):
            raise RequestError("a stop string is empty but must hold at least one byte. Leave it out.")
        self._next: list[dict[int, int]] = [{}]
        self._depth = [0]
        self._longest = [0]  # per state: bytes of the longest stop string that ends here
        self._fail = [0]
        for stop in stops:
            self._insert(stop)
        self._link()
        self._state = 0
        self._num_bytes = 0
        self._hit: StopState | None = None

    def push(self, data: bytes) -> StopState:
        """Read more bytes; after a hit, nothing changes any more."""
        if self._hit is not None or len(self._next) == 1:
            return self._hit or _NOTHING
        for byte in data:
            self._num_bytes += 1
            self._state = self._step(self._state, byte)
            if self._longest[self._state]:
                self._hit = StopState(hit_at=self._num_bytes - self._longest[self._state])
                return self._hit
        pending = self._depth[self._state]
        return StopState(pending=pending) if pending else _NOTHING

    def _step(self, state: int, byte: int) -> int:
        while state and byte not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(byte, 0)

    def _insert(self, stop: bytes) -> None:
        state = 0
        for byte in stop:
            if byte not in self._next[state]:
                self._next[state][byte] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._longest.append(0)
                self._fail.append(0)
            state = self._next[state][byte]
        self._longest[state] = len(stop)

    def _link(self) -> None:
        """Give each state the state of its longest proper suffix, nearest to the root first."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for byte, child in self._next[state].items():
                self._fail[child] = self._step(self._fail[state], byte)
                queue.append(child)
            self._longest[state] = self._longest[state] or self._longest[self._fail[state]]
