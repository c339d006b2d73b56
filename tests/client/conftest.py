"""A scripted server and a client of it, both gone with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from client_rig import FakeServer, Script
from dsv4_client import Client


@pytest.fixture
def serve() -> Iterator[Callable[[Script], FakeServer]]:
    """Start scripted servers."""
    servers: list[FakeServer] = []

    def start(script: Script) -> FakeServer:
        servers.append(FakeServer(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def connect(serve: Callable[[Script], FakeServer]) -> Iterator[Callable[[Script], tuple[Client, FakeServer]]]:
    """Start a scripted server and connect to it."""
    clients: list[Client] = []

    def start(script: Script) -> tuple[Client, FakeServer]:
        server = serve(script)
        clients.append(Client(server.url))
        return clients[-1], server

    yield start
    for client in clients:
        client.close()
