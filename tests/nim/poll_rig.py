"""Asking a port all the time, so that a moment without an answer is seen."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

PATIENCE_S = 30.0  # who waits in the queue is not refused; a busy machine is slow


@dataclass
class Seen:
    """What was answered: bodies by path, and every connection that failed, with its reason."""

    bodies: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    failures: list[str] = field(default_factory=list)
    num_answers: int = 0


@contextlib.contextmanager
def polling(port: int, *paths: str) -> Iterator[Seen]:
    """Ask for each path again and again, each time on a connection of its own, until the end of the block."""
    seen, is_over = Seen(), threading.Event()

    def poll() -> None:
        while not is_over.wait(0.01):
            for path in paths:
                try:
                    seen.bodies[path].add(ask(port, path)[1])
                    seen.num_answers += 1
                except (OSError, http.client.HTTPException) as error:
                    seen.failures.append(f"{path}: {type(error).__name__}: {error}")

    thread = threading.Thread(target=poll, name="poll", daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join(2 * PATIENCE_S)


def ask(port: int, path: str, method: str = "GET", body: str = "") -> tuple[int, str]:
    """Status and body of a request on loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body=body or None)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
