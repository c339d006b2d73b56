"""The HTTP gateway as an optional process of the container: there as soon as the command `dsv4 gateway` is."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from dsv4_nim.errors import SettingError
from dsv4_nim.logs import Log
from dsv4_nim.resolve import Resolution

GATEWAY = "gateway"
STOP_S = 40.0  # it finishes running answers first
PAUSE_S = 1.0


class Gateway:
    """Keeps `dsv4 gateway` up on the API port; it speaks gRPC to Triton, and goes last when the container stops."""

    def __init__(self, arguments: list[str], log: Log) -> None:
        self._log = log
        self._is_over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [sys.executable, "-m", "dsv4_backend.cli", GATEWAY, *arguments]
        self._thread = threading.Thread(target=self._watch, name="gateway", daemon=True)

    def __enter__(self) -> Self:
        """Start it."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it; by now Triton has drained."""
        self._is_over.set()
        if self._process:
            self._process.send_signal(signal.SIGTERM)
        self._thread.join(STOP_S)
        if self._process and self._process.poll() is None:
            self._process.kill()

    def _watch(self) -> None:
        """Start it again when it ends by itself."""
        while not self._is_over.is_set():
            self._process = subprocess.Popen(self._command)
            self._process.wait()
            if not self._is_over.wait(PAUSE_S):
                self._log.error("the gateway ended by itself and is started again")


def gateway_arguments(resolution: Resolution, folder: Path, name: str) -> list[str]:
    """Return the arguments of `dsv4 gateway`.

    Raises: SettingError for what NIM's table has and the gateway has not.
    """
    ports = {key: resolution.port(key) for key in ("server_port", "triton_grpc_port", "triton_metrics_port")}
    arguments = ["--host", resolution.text("host"), "--port", str(ports["server_port"])]
    arguments += ["--url", f"127.0.0.1:{ports['triton_grpc_port']}"]
    arguments += ["--metrics-url", f"http://127.0.0.1:{ports['triton_metrics_port']}/metrics"]
    arguments += ["--checkpoint", str(folder), "--model-name", name]
    for origin in filter(None, resolution.text("cors_allow_origins").split(",")):
        arguments += ["--cors-origin", origin.strip()]
    mode = resolution.text("ssl_mode")
    if mode == "MTLS":
        raise SettingError("NIM_SSL_MODE is MTLS but the gateway checks no client certificates. Set NIM_SSL_MODE=TLS.")
    if mode == "TLS":
        arguments += ["--tls-cert", resolution.text("ssl_certs_path"), "--tls-key", resolution.text("ssl_key_path")]
    return arguments
