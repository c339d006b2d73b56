"""Servers that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from launcher_rig import echo_options

from dsv4_backend.launcher import Server


@pytest.fixture
def make_server() -> Iterator[Callable[..., Server]]:
    """Make servers that are ended with the test."""
    made: list[Server] = []

    def make(**changes: object) -> Server:
        made.append(Server(echo_options(**changes)))
        return made[-1]

    yield make
    for server in made:
        server.kill()
