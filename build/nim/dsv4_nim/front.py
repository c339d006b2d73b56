"""The routes that the container answers by itself, from the first second on: health, metadata, version and the like.

The API's own routes (chat, completions, responses, messages) are the gateway's; without one they are 404 here.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from dsv4_nim.errors import PortError, SettingError

JSON, TEXT = "application/json", "text/plain; version=0.0.4; charset=utf-8"
REQUEST_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer."""

    body: str
    status: int = 200
    kind: str = JSON


Route = Callable[[], Reply]


def json_reply(content: object, status: int = 200) -> Reply:
    """Return an answer of JSON."""
    return Reply(body=json.dumps(content), status=status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Certificate, key, and for MTLS what clients are checked against."""

    certificate: str
    key: str
    ca: str = ""

    def context(self) -> ssl.SSLContext:
        """Return the server's context. Raises: SettingError when a file cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.ca:
                context.load_verify_locations(self.ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            raise SettingError(
                f"NIM_SSL_CERTS_PATH {self.certificate}, NIM_SSL_KEY_PATH {self.key}, NIM_SSL_CA_CERTS_PATH"
                f" {self.ca or '(unset)'}: {error}. Name PEM files that uid 1000 may read."
            ) from error
        return context


class Front:
    """A small HTTP server of fixed routes, on threads of its own."""

    def __init__(self, host: str, port: int, routes: Mapping[str, Route], *, tls: Tls | None = None) -> None:
        """Open the port; port 0 takes any free one. Raises: PortError when it is taken; SettingError for a bad file."""
        context = tls.context() if tls else None
        try:
            self._server = _Server((host, port), _handler(routes))
        except OSError as error:
            raise PortError(
                f"port {port} on {host} cannot be opened: {error.strerror}. Stop what listens there, or set"
                " NIM_SERVER_PORT (or NIM_HEALTH_PORT) to another."
            ) from error
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, name="front", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


class _Handler(BaseHTTPRequestHandler):
    routes: ClassVar[Mapping[str, Route]] = {}
    protocol_version = "HTTP/1.1"
    timeout = REQUEST_TIMEOUT_S  # a client that opens a connection and says nothing is let go

    def do_GET(self) -> None:
        """Answer one of the routes."""
        path = self.path.partition("?")[0]
        route = self.routes.get(path)
        self._reply(route() if route else _not_found(self.path))

    def do_POST(self) -> None:
        """There is nothing to post here; the body is left unread, so the connection ends."""
        self.close_connection = True
        self._reply(_not_found(self.path))

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: probes come every few seconds."""

    def _reply(self, reply: Reply) -> None:
        body = reply.body.encode()
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _handler(routes: Mapping[str, Route]) -> type[_Handler]:
    return type("Handler", (_Handler,), {"routes": routes})


def _not_found(path: str) -> Reply:
    return json_reply({"error": {"message": f"{path} is not served here.", "type": "not_found", "code": 404}}, 404)
