"""Answers of the Responses API that a later request may go on from."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from dsv4_client.gateway.errors import ApiError

Body = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Stored:
    """One response, what it answered, and the task that still works on it."""

    response: Body
    items: list[Any]
    task: asyncio.Task[None] | None = None
    num_bytes: int = field(default=0)

    @property
    def is_running(self) -> bool:
        """Whether the answer is still being made."""
        return self.task is not None and not self.task.done()


class ResponseStore:
    """Bounded by number and size; the oldest goes first, but never one that is still being made."""

    def __init__(self, *, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, Stored] = OrderedDict()
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, response_id: str, entry: Stored) -> None:
        """Keep a response, or replace what was kept under its id."""
        self.drop(response_id)
        entry.num_bytes = len(json.dumps([entry.response, entry.items]))
        self._entries[response_id] = entry
        self._num_bytes += entry.num_bytes
        for old in list(self._entries):
            if len(self._entries) <= self._max_entries and self._num_bytes <= self._max_bytes:
                return
            if not self._entries[old].is_running:
                self.drop(old)

    def get(self, response_id: str) -> Stored:
        """Return a response. Raises: ApiError 404."""
        found = self._entries.get(response_id)
        if found is None:
            raise ApiError(
                404,
                f"no response with id {response_id[:80]!r} is kept (the last {self._max_entries} that were stored are)."
                " Send the whole input instead.",
                "response_not_found",
            )
        return found

    def drop(self, response_id: str) -> None:
        """Forget a response; harmless when it is not kept."""
        entry = self._entries.pop(response_id, None)
        if entry is not None:
            self._num_bytes -= entry.num_bytes

    def check(self) -> None:
        """Verify the bounds and the sum of sizes. Raises: ValueError."""
        size = sum(entry.num_bytes for entry in self._entries.values())
        kept = [entry for entry in self._entries.values() if not entry.is_running]
        is_full = len(self._entries) > self._max_entries or size > self._max_bytes
        if size != self._num_bytes or (is_full and kept):
            raise ValueError(f"{len(self._entries)} responses, {size} bytes counted as {self._num_bytes}")
