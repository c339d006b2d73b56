"""Listen until a signal comes, then let running answers finish."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from dsv4_client.gateway.app import make_app
from dsv4_client.gateway.handover import take_listener
from dsv4_client.gateway.service import make_service
from dsv4_client.gateway.settings import GatewaySettings

DRAIN_S = 30
BACKLOG = 4096  # a thousand clients may come at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where to listen; with a certificate and its key over TLS.

    Rule: with `listener_from` the listening socket is taken from the process that answered on this port before.
    """

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None
    listener_from: int | None = None

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"{'https' if self.certificate else 'http'}://{self.host}:{self.port}/v1"


async def serve(settings: GatewaySettings, listen: Listen) -> None:
    """Serve inside this event loop, to which the gRPC channel belongs. Raises: ConfigError as take_listener does."""
    config = uvicorn.Config(
        make_app(make_service(settings)),
        host=listen.host,
        port=listen.port,
        access_log=False,  # the gateway writes its own, without any text of a request
        log_level="warning",
        ssl_certfile=listen.certificate,
        ssl_keyfile=listen.key,
        timeout_graceful_shutdown=DRAIN_S,
        backlog=BACKLOG,
        server_header=False,
    )
    config.load()
    server = _Server(config)
    # The loop stands still meanwhile: there is nothing else to do, and a signal ends the process at once.
    sockets = None if listen.listener_from is None else [take_listener(listen.listener_from)]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    sys.stderr.write(f"gateway {listen.url} serves {settings.model_name}\n")
    await server.serve(sockets)


class _Server(uvicorn.Server):
    """A server whose signals are handled by the event loop: uvicorn would raise them again after its clean end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the handlers alone."""
        yield
