"""The routes that the container answers by itself, from the first second on: health, metadata, version and the like.

The API's own routes (chat, completions, responses, messages) are the gateway's, which takes the port over.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from dsv4_nim.errors import PortError, SettingError

JSON, TEXT = "application/json", "text/plain; version=0.0.4; charset=utf-8"
REQUEST_TIMEOUT_S = 30.0
MAX_BODY_BYTES = 1 << 20  # what is read and thrown away, so that the answer is seen before the connection's end
POLL_S = 0.05  # how long those may wait who come while the port is handed over


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer."""

    body: str
    status: int = 200
    kind: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


Route = Callable[[], Reply]


def json_reply(content: object, status: int = 200, **headers: str) -> Reply:
    """Return an answer of JSON, written as the gateway writes it."""
    return Reply(body=json.dumps(content, ensure_ascii=False, separators=(",", ":")), status=status, headers=headers)


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
    """A small HTTP server of fixed routes, on threads of its own.

    Rule: an answer ends its connection, so nobody goes on talking to the front after another has taken the port.
    """

    def __init__(
        self,
        host: str,
        port: int,
        routes: Mapping[str, Route],
        *,
        posts: Mapping[str, Route] | None = None,
        tls: Tls | None = None,
    ) -> None:
        """Open the port; port 0 takes any free one. Raises: PortError when it is taken; SettingError for a bad file."""
        context = tls.context() if tls else None
        try:
            self._server = _Server((host, port), _handler(routes, posts or {}), context)
        except OSError as error:
            raise PortError(
                f"port {port} on {host} cannot be opened: {error.strerror}. Stop what listens there, or set"
                " NIM_SERVER_PORT (or NIM_HEALTH_PORT) to another."
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL_S,), name="front", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def hand_over(self) -> socket.socket:
        """Take no more connections and return the listening socket, which stays open: who comes now waits in it."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        return self._server.socket

    def stop(self) -> None:
        """Close the port."""
        self.hand_over()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None
    ) -> None:
        super().__init__(address, handler)
        self._context = context
        self.socket.setblocking(False)  # who takes the port over may take a connection before us

    def get_request(self) -> tuple[socket.socket, Any]:
        """Take a connection; its TLS handshake is left to its own thread, so a silent client holds nobody up."""
        connection, address = self.socket.accept()
        if self._context:
            connection = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or that no certificate vouches for, is no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    routes: ClassVar[Mapping[str, Route]] = {}
    posts: ClassVar[Mapping[str, Route]] = {}
    protocol_version = "HTTP/1.1"
    timeout = REQUEST_TIMEOUT_S  # a client that opens a connection and says nothing is let go

    def do_GET(self) -> None:
        """Answer one of the routes."""
        self._answer(self.routes)

    def do_POST(self) -> None:
        """Answer what the gateway will answer later; the body is not looked at."""
        length = self.headers.get("Content-Length", "0")
        self.rfile.read(min(int(length), MAX_BODY_BYTES) if length.isdigit() else 0)
        self._answer(self.posts)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: probes come every few seconds."""

    def _answer(self, routes: Mapping[str, Route]) -> None:
        route = routes.get(self.path.partition("?")[0])
        self._reply(route() if route else _not_found(self.path))

    def _reply(self, reply: Reply) -> None:
        body = reply.body.encode()
        self.send_response(reply.status)
        headers = {"Content-Type": reply.kind, "Content-Length": str(len(body)), "Connection": "close"}
        for name, value in {**headers, **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _handler(routes: Mapping[str, Route], posts: Mapping[str, Route]) -> type[_Handler]:
    return type("Handler", (_Handler,), {"routes": routes, "posts": posts})


def _not_found(path: str) -> Reply:
    return json_reply({"error": {"message": f"{path} is not served here.", "type": "not_found", "code": 404}}, 404)
