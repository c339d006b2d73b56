"""The HTTP gateway as a process of the container: how it is started, gets the API port, and is told to stop."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from dsv4_client.gateway.errors import ApiError
from dsv4_client.gateway.handover import give_listener, is_wanted

from dsv4_backend.errors import LaunchError
from dsv4_nim.errors import SettingError
from dsv4_nim.front import Front, Route, json_reply
from dsv4_nim.logs import Log
from dsv4_nim.resolve import Resolution

STOP_S = 40.0  # it finishes running answers first
PAUSE_S = 1.0
OPEN_S = 120.0
COMMAND = (sys.executable, "-m", "dsv4_backend.cli", "gateway")
API_PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
    "/tokenize", "/detokenize",
)  # fmt: skip


class Gateway:
    """Keeps `dsv4 gateway` up on the API port; it speaks gRPC to Triton, and goes last when the container stops.

    Rule: the port is the front's from the container's first second to its last. What the gateway gets is the front's
          listening socket, so nobody is refused when it takes over, or is started again.
    """

    def __init__(self, arguments: Sequence[str], log: Log, front: Front, *, command: Sequence[str] = COMMAND) -> None:
        self._log = log
        self._front = front
        self._may_open, self._is_open, self._is_over = threading.Event(), threading.Event(), threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [*command, *arguments]
        self._thread = threading.Thread(target=self._watch, name="gateway", daemon=True)

    def start(self) -> None:
        """Start it, and again whenever it ends by itself. It has no port yet."""
        self._thread.start()

    def open(self, *, timeout_s: float = OPEN_S) -> None:
        """Give it the front's port as soon as it wants it. Raises: LaunchError after timeout_s."""
        self._may_open.set()
        if not self._is_open.wait(timeout_s):
            raise LaunchError(
                f"the gateway does not answer on port {self._front.port} after {timeout_s:g} s. Its reason is in the"
                " log above. Is the machine too busy?"
            )

    def stop(self) -> None:
        """Close the port, let it finish its answers and end; harmless when it was not started."""
        self._is_over.set()
        self._may_open.set()
        self._front.stop()
        if not self._thread.is_alive():
            return
        if self._process:
            self._process.send_signal(signal.SIGTERM)
        self._thread.join(STOP_S)
        if self._process and self._process.poll() is None:
            self._process.kill()

    def _watch(self) -> None:
        while not self._is_over.is_set():
            line, its_end = socket.socketpair()
            with line:
                with its_end:
                    number = its_end.fileno()
                    command = [*self._command, "--listener-from", str(number)]
                    self._process = subprocess.Popen(command, pass_fds=(number,))
                if self._is_over.is_set():  # stop() came between the two and has told nobody
                    self._process.terminate()
                self._give(line)
                self._process.wait()
            if not self._is_over.wait(PAUSE_S):
                self._log.error("the gateway ended by itself and is started again")

    def _give(self, line: socket.socket) -> None:
        if not is_wanted(line):
            return
        self._may_open.wait()
        if not self._is_over.is_set() and give_listener(line, self._front.hand_over()):
            self._is_open.set()


def not_yet() -> dict[str, Route]:
    """Return what the API's own paths answer until the gateway has the port: come back soon."""
    error = ApiError(503, "the model is not ready. Try again soon.", "not_ready", retry_after_s=2.0)

    def teller(path: str) -> Route:
        reply = json_reply(error.body(path), error.status, **error.headers)
        return lambda: reply

    return {path: teller(path) for path in API_PATHS}


def gateway_arguments(resolution: Resolution, folder: Path, name: str, facts: Path) -> list[str]:
    """Return the arguments of `dsv4 gateway`; `facts` is the file of what the container tells about itself.

    Raises: SettingError for what NIM's table has and the gateway has not.
    """
    ports = {key: resolution.port(key) for key in ("server_port", "triton_grpc_port", "triton_metrics_port")}
    arguments = ["--host", resolution.text("host"), "--port", str(ports["server_port"])]
    arguments += ["--url", f"127.0.0.1:{ports['triton_grpc_port']}"]
    arguments += ["--metrics-url", f"http://127.0.0.1:{ports['triton_metrics_port']}/metrics"]
    arguments += ["--checkpoint", str(folder), "--model-name", name, "--facts", str(facts)]
    for origin in filter(None, resolution.text("cors_allow_origins").split(",")):
        arguments += ["--cors-origin", origin.strip()]
    mode = resolution.text("ssl_mode")
    if mode == "MTLS":
        raise SettingError("NIM_SSL_MODE is MTLS but the gateway checks no client certificates. Set NIM_SSL_MODE=TLS.")
    if mode == "TLS":
        arguments += ["--tls-cert", resolution.text("ssl_certs_path"), "--tls-key", resolution.text("ssl_key_path")]
    return arguments
