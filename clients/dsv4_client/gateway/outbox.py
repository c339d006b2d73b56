"""What waits to be sent on one stream: bounded, so that a client that does not read holds up its own stream only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from dsv4_client.gateway.errors import ApiError


class StalledError(ApiError):
    """The client did not read for too long."""


class Outbox:
    """Pulls messages from a source on a task of its own.

    Rule:   at max_events unsent messages the source is not read further; if that lasts stall_s, the source is closed,
            which stops its request, and the reader gets a StalledError after what was waiting.
            `close` ends the source at once, wherever it is.
    """

    def __init__(
        self,
        source: AsyncGenerator[bytes, None],
        *,
        max_events: int,
        stall_s: float,
        on_stall: Callable[[], None],
    ) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(max_events)
        self._stall_s = stall_s
        self._on_stall = on_stall
        self._failure: Exception | None = None
        self._is_ended = False
        self._woken = asyncio.Event()
        self._task = asyncio.create_task(self._pull(source))

    async def take(self, timeout_s: float) -> bytes | None:
        """Return all that waits as one piece; empty after timeout_s without news, None at the end.

        Raises: what the source raised, after everything that came before it.
        """
        if self._queue.empty() and not self._is_ended:
            self._woken.clear()
            try:
                await asyncio.wait_for(self._woken.wait(), timeout_s)
            except TimeoutError:
                return b""
        parts = []
        while not self._queue.empty():
            parts.append(self._queue.get_nowait())
        if parts:
            return b"".join(parts)
        if self._failure is not None:
            raise self._failure
        return None if self._is_ended else b""

    def close(self) -> asyncio.Task[None]:
        """End the source and return the task that does so."""
        self._task.cancel()
        return self._task

    async def _pull(self, source: AsyncGenerator[bytes, None]) -> None:
        try:
            async with aclosing(source):
                async for message in source:
                    async with asyncio.timeout(self._stall_s):
                        await self._queue.put(message)
                    self._woken.set()
        except TimeoutError:
            self._on_stall()
            self._failure = StalledError(
                503,
                f"{self._queue.maxsize} events were not read for {self._stall_s:g} s; the request was ended."
                " Read faster, or ask for fewer tokens.",
                "slow_reader",
            )
        except Exception as error:  # the end of the task: the reader of the outbox is told
            self._failure = error
        finally:
            self._is_ended = True
            self._woken.set()
