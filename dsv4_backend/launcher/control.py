"""Triton's HTTP control calls, over loopback: readiness, the repository index, unloading."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One server's HTTP endpoint. Every call opens a connection of its own and is short."""

    host: str
    port: int
    timeout_s: float = 10.0

    def is_ready(self) -> bool:
        """Tell whether the server answers and every loaded model is ready."""
        return self._call("GET", "/v2/health/ready")[0] == 200

    def index(self) -> dict[str, str]:
        """Return model name → state (READY, UNLOADING, UNAVAILABLE …); empty when the server does not answer."""
        status, body = self._call("POST", "/v2/repository/index")
        rows: Any = json.loads(body) if status == 200 else []
        return {row["name"]: row.get("state", "") for row in rows}

    def unload(self, model: str) -> bool:
        """Ask for an unload, which refuses new requests at once and lets running ones finish."""
        return self._call("POST", f"/v2/repository/models/{model}/unload")[0] == 200

    def text(self, path: str) -> str:
        """Return what a GET answers; empty when nobody does."""
        status, body = self._call("GET", path)
        return body if status == 200 else ""

    def generate(self, model: str, inputs: dict[str, object]) -> tuple[int, str]:
        """Send one request of one response and return (status, body)."""
        return self._call("POST", f"/v2/models/{model}/generate", json.dumps(inputs))

    def _call(self, method: str, path: str, body: str = "") -> tuple[int, str]:
        """Return (status, body); status 0 when nobody answers."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
        try:
            connection.request(method, path, body=body or None, headers={"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)
        finally:
            connection.close()
