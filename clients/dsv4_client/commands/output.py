"""How events look on a terminal, in a pipe and as JSON."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TextIO

from dsv4_client.events import Delta, Event, Final

_DIM = "\x1b[2m"
_PLAIN = "\x1b[0m"


def event_json(event: Event) -> str:
    """Return one event as a line of JSON; empty lists are left out."""
    fields = {"type": "delta" if isinstance(event, Delta) else "final", **asdict(event)}
    return json.dumps({name: value for name, value in fields.items() if value != ()}, ensure_ascii=False)


class Stopwatch:
    """Times one answer: time to the first token, then tokens per second."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()
        self._first_s: float | None = None
        self._num_first = 0

    def see(self, event: Event) -> None:
        """Note that an event has arrived."""
        if self._first_s is None and isinstance(event, Delta):
            self._first_s = time.monotonic()
            self._num_first = len(event.token_ids)

    def summary(self, final: Final) -> str:
        """Return usage, time to the first token and speed as one line."""
        usage = final.usage
        parts = [
            f"{usage.num_input_tokens} prompt tokens ({usage.num_cached_tokens} cached)",
            f"{usage.num_output_tokens} tokens",
        ]
        if self._first_s is not None:
            parts.append(f"first after {1000 * (self._first_s - self._start_s):.0f} ms")
            spent_s = time.monotonic() - self._first_s
            num_later = usage.num_output_tokens - self._num_first
            if num_later > 0 and spent_s > 0:
                parts.append(f"{num_later / spent_s:.1f} tok/s")
        return f"[{', '.join(parts)}, {final.finish_reason.value}]"


class Screen:
    """Writes an answer: thinking dimmed on a terminal, between <think> and </think> elsewhere."""

    def __init__(self, sink: TextIO) -> None:
        self._sink = sink
        self._is_terminal = sink.isatty()
        self._is_thinking = False

    def thinking(self, text: str) -> None:
        """Write a piece of thinking."""
        if text and not self._is_thinking:
            self._is_thinking = True
            self._write(_DIM if self._is_terminal else "<think>")
        self._write(text)

    def text(self, text: str) -> None:
        """Write a piece of the answer."""
        if text:
            self._leave_thinking()
        self._write(text)

    def note(self, text: str) -> None:
        """Write a line about the answer, dimmed on a terminal and left out elsewhere."""
        self._leave_thinking()
        if self._is_terminal:
            self._write(f"\n{_DIM}{text}{_PLAIN}")
        self._write("\n")

    def _leave_thinking(self) -> None:
        if self._is_thinking:
            self._is_thinking = False
            self._write(f"{_PLAIN}\n" if self._is_terminal else "</think>\n")

    def _write(self, text: str) -> None:
        self._sink.write(text)
        self._sink.flush()
