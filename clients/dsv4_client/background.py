"""Reads a generation on a thread of its own, so that Ctrl-C never strikes inside the gRPC library.

CPython may deliver an interrupt inside `Condition.wait` while its lock is released and not yet taken back: the library
then fails with a lock error instead. A SimpleQueue waits in C, where an interrupt is clean.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue

from dsv4_client.events import Event
from dsv4_client.stream import Generation


class Background(Iterator[Event]):
    """The events of a generation, for the main thread of a program. The generation's owner still closes it."""

    def __init__(self, generation: Generation) -> None:
        self._items: SimpleQueue[Event | Exception | None] = SimpleQueue()
        threading.Thread(target=self._read, args=(generation,), daemon=True).start()

    def __next__(self) -> Event:
        """Return the next event. Raises: what the generation raised."""
        item = self._items.get()
        if item is None:
            raise StopIteration
        if isinstance(item, Exception):
            raise item
        return item

    def _read(self, generation: Generation) -> None:
        try:
            for event in generation:
                self._items.put(event)
            self._items.put(None)
        except Exception as error:  # the end of the thread: its reader decides
            self._items.put(error)
