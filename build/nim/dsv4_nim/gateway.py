"""The HTTP gateway as an optional process of the container: there as soon as the command `dsv4 gateway` is."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from dsv4_backend.errors import LaunchError
from dsv4_nim.errors import SettingError
from dsv4_nim.logs import Log
from dsv4_nim.resolve import Resolution

GATEWAY = "gateway"
STOP_S = 40.0  # it finishes running answers first
PAUSE_S = 1.0
OPEN_S = 120.0
POLL_S = 0.1
COMMAND = (sys.executable, "-m", "dsv4_backend.cli", GATEWAY)


class Gateway:
    """Keeps `dsv4 gateway` up on the API port; it speaks gRPC to Triton, and goes last when the container stops."""

    def __init__(self, arguments: Sequence[str], log: Log, *, command: Sequence[str] = COMMAND) -> None:
        self._log = log
        self._is_over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [*command, *arguments]
        self._thread = threading.Thread(target=self._watch, name="gateway", daemon=True)

    def start(self) -> None:
        """Start it, and again whenever it ends by itself."""
        self._thread.start()

    def wait_open(self, host: str, port: int, *, timeout_s: float = OPEN_S) -> None:
        """Return when its port takes connections, or it was told to stop. Raises: LaunchError after timeout_s."""
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        deadline = time.monotonic() + timeout_s
        while not self._is_over.wait(POLL_S):
            with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=POLL_S):
                return
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"the gateway does not listen on {host}:{port} after {timeout_s:g} s. Its reason is in the log"
                    " above; stop what else uses NIM_SERVER_PORT, or set another."
                )

    def stop(self) -> None:
        """Let it finish its answers and end; harmless when it was not started."""
        self._is_over.set()
        if not self._thread.is_alive():
            return
        if self._process:
            self._process.send_signal(signal.SIGTERM)
        self._thread.join(STOP_S)
        if self._process and self._process.poll() is None:
            self._process.kill()

    def _watch(self) -> None:
        while not self._is_over.is_set():
            self._process = subprocess.Popen(self._command)
            if self._is_over.is_set():  # stop() came between the two and has told nobody
                self._process.terminate()
            self._process.wait()
            if not self._is_over.wait(PAUSE_S):
                self._log.error("the gateway ended by itself and is started again")


def gateway_arguments(resolution: Resolution, folder: Path, name: str, profile_id: str) -> list[str]:
    """Return the arguments of `dsv4 gateway`.

    Raises: SettingError for what NIM's table has and the gateway has not.
    """
    ports = {key: resolution.port(key) for key in ("server_port", "triton_grpc_port", "triton_metrics_port")}
    arguments = ["--host", resolution.text("host"), "--port", str(ports["server_port"])]
    arguments += ["--url", f"127.0.0.1:{ports['triton_grpc_port']}"]
    arguments += ["--metrics-url", f"http://127.0.0.1:{ports['triton_metrics_port']}/metrics"]
    arguments += ["--checkpoint", str(folder), "--model-name", name, "--profile-id", profile_id]
    for origin in filter(None, resolution.text("cors_allow_origins").split(",")):
        arguments += ["--cors-origin", origin.strip()]
    mode = resolution.text("ssl_mode")
    if mode == "MTLS":
        raise SettingError("NIM_SSL_MODE is MTLS but the gateway checks no client certificates. Set NIM_SSL_MODE=TLS.")
    if mode == "TLS":
        arguments += ["--tls-cert", resolution.text("ssl_certs_path"), "--tls-key", resolution.text("ssl_key_path")]
    return arguments
