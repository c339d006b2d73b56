"""Splits an answer's text into thinking and answer while it streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

OPEN = "<think>"
CLOSE = "</think>"


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text of one kind."""

    text: str
    is_thinking: bool


class ThinkingSplitter:
    """Remembers, between two pieces of a stream, whether the model is thinking.

    Rule: the tags themselves are left out. An end of text that could begin the next tag is held back until
          more text decides; `finish` returns it.
    """

    def __init__(self, *, is_thinking: bool) -> None:
        self._is_thinking = is_thinking
        self._held = ""

    def push(self, text: str) -> Iterator[Piece]:
        """Take the next text and yield what is certain."""
        self._held += text
        while True:
            tag = CLOSE if self._is_thinking else OPEN
            before, found, after = self._held.partition(tag)
            if not found:
                break
            yield from self._piece(before)
            self._is_thinking = not self._is_thinking
            self._held = after
        size = len(self._held) - _tag_start(self._held, tag)
        ready, self._held = self._held[:size], self._held[size:]
        yield from self._piece(ready)

    def finish(self) -> Iterator[Piece]:
        """Yield what was held back: the stream has ended."""
        held, self._held = self._held, ""
        yield from self._piece(held)

    def _piece(self, text: str) -> Iterator[Piece]:
        if text:
            yield Piece(text, self._is_thinking)


def _tag_start(text: str, tag: str) -> int:
    """Length of the longest end of text that begins a tag."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)
