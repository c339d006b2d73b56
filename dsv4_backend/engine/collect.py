"""Use the engine as a library: submit one request and iterate over its chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from queue import SimpleQueue

from dsv4_backend.engine.engine import Engine
from dsv4_backend.errors import NotFoundError
from dsv4_backend.records import Chunk, Request


class _QueueSink:
    def __init__(self) -> None:
        self.chunks: SimpleQueue[Chunk] = SimpleQueue()

    def put(self, chunk: Chunk) -> None:
        self.chunks.put(chunk)


def iterate(engine: Engine, request: Request) -> Iterator[Chunk]:
    """Yield the chunks of a request, the final one last; leaving the loop early cancels the request.

    Raises: RequestError, OverloadedError at the first step.
    """
    sink = _QueueSink()
    engine.submit(request, sink)
    is_ended = False
    try:
        while not is_ended:
            chunk = sink.chunks.get()
            is_ended = chunk.is_final
            yield chunk
    finally:
        if not is_ended:
            with suppress(NotFoundError):
                engine.cancel(request.id)
