"""Which tokens may leave: at complete UTF-8 ends, with no stop string pending.

The text of a request is the joined bytes of its tokens. Bytes leave in order; a byte is held back only while it may
belong to an unfinished character (at most 3 bytes) or to the beginning of a stop string.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsv4_backend.text.stop import StopMatcher
from dsv4_backend.text.utf8 import complete_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """Tokens and bytes that may leave now; see records.Chunk for the meaning of the byte range."""

    token_ids: tuple[int, ...] = ()
    text_ids: tuple[int, ...] = ()
    skip_bytes: int = 0
    keep_bytes: int = 0


@dataclass(slots=True)
class _Piece:
    """A token whose bytes have not all left. Generated ones are listed once, with their first byte."""

    token_id: int
    num_bytes: int
    is_listed: bool


class Releaser:
    """Holds back what must not leave yet. One per request."""

    def __init__(self, token_bytes: Callable[[int], bytes], stop: tuple[bytes, ...], echo_ids: tuple[int, ...]) -> None:
        self._token_bytes = token_bytes
        self._matcher = StopMatcher(stop) if stop else None
        self._pieces: list[_Piece] = []
        self._buffer = b""
        self._num_skip = 0  # bytes of the first piece that have already left
        self._num_left = 0  # bytes that have left in all
        self._num_unmatched = 0  # bytes before the first one that the matcher saw
        self._num_pending = 0  # trailing bytes that may begin a stop string
        for token_id in echo_ids:
            self._num_unmatched += len(self._add(token_id, is_listed=True))

    @property
    def num_held_bytes(self) -> int:
        """Bytes that have not left yet."""
        return len(self._buffer)

    def push(self, token_id: int, *, is_text: bool = True, is_matched: bool = True) -> bool:
        """Add a generated token; return whether a stop string is complete. Then only `flush` may follow.

        is_text False: an end-of-sequence token, listed but without text. is_matched False: not searched for stops.
        """
        if not is_text:
            self._pieces.append(_Piece(token_id, 0, False))
            return False
        data = self._add(token_id, is_listed=False)
        if self._matcher is None or not is_matched:
            self._num_unmatched += len(data)
            return False
        state = self._matcher.push(data)
        self._num_pending = state.pending
        if state.hit_at is None:
            return False
        self._buffer = self._buffer[: max(0, self._num_unmatched + state.hit_at - self._num_left)]
        return True

    def take(self) -> Released:
        """Release all that may leave while more tokens may follow."""
        free = len(self._buffer) - self._num_pending
        return self._release(complete_length(self._buffer[:free]))

    def flush(self) -> Released:
        """Release everything: the request has ended."""
        return self._release(len(self._buffer), is_end=True)

    def _add(self, token_id: int, *, is_listed: bool) -> bytes:
        data = self._token_bytes(token_id)
        self._pieces.append(_Piece(token_id, len(data), is_listed))
        self._buffer += data
        return data

    def _release(self, num_bytes: int, *, is_end: bool = False) -> Released:
        """Let the first num_bytes of the buffer leave, and list the tokens that they touch."""
        skip, stop = self._num_skip, self._num_skip + num_bytes
        token_ids, text_ids = [], []
        position, num_done = 0, 0
        for piece in self._pieces:
            is_touched = position < stop or (piece.num_bytes == 0 and position <= stop)
            if not is_touched and not is_end:
                break
            if not piece.is_listed:
                token_ids.append(piece.token_id)
                piece.is_listed = True
            if piece.num_bytes and position < stop and num_bytes:
                text_ids.append(piece.token_id)
            position += piece.num_bytes
            num_done += position <= stop
        consumed = sum(piece.num_bytes for piece in self._pieces[:num_done])
        del self._pieces[:num_done]
        self._buffer = self._buffer[num_bytes:]
        self._num_left += num_bytes
        self._num_skip = stop - consumed
        if not text_ids:
            skip = num_bytes = 0
        return Released(
            token_ids=tuple(token_ids), text_ids=tuple(text_ids), skip_bytes=skip, keep_bytes=skip + num_bytes
        )
