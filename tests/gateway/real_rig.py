"""A gateway process in front of a real server with the bundled model, and what the real clients are asked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
from gateway_rig import wait_until

from dsv4_backend.launcher import Server, ServerOptions, free_ports
from tests.conftest import ROOT

NANO = "dsv4-nano"
KEY = "key-of-this-test"
OFF: dict[str, Any] = {"thinking": {"type": "disabled"}}
HELLO: Any = [{"role": "user", "content": "Hello"}]
PERSON: dict[str, Any] = {
    "title": "register",
    "description": "Register a person",
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "function": {"name": "register", "parameters": PERSON}}]


@dataclass(frozen=True)
class Real:
    """A gateway process in front of a server."""

    url: str
    server: Server

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=60)

    def anthropic(self) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.url, api_key=KEY, max_retries=0, timeout=60)

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://{self.server.metrics_address}/metrics", timeout=20) as reply:
            found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", reply.read().decode(), re.MULTILINE)
        return sum(map(float, found))

    def is_idle(self) -> bool:
        """Whether no request runs, and no page belongs to one."""
        names = ("dsv4_running_requests", "dsv4_waiting_requests", "dsv4_pages_used")
        return all(self.metric(name) == 0 for name in names)


@contextmanager
def run_real(checkpoint: Path, folder: Path) -> Iterator[Real]:
    """Start both; the gateway asks for KEY, which lies in `folder`."""
    keys = folder / "keys"
    keys.write_text(f"{KEY}\n", encoding="utf-8")
    settings = {"checkpoint": str(checkpoint), "num_threads": "1"}
    (port,) = free_ports(1)
    with Server(ServerOptions(repository=ROOT / "model_repository", settings=settings)) as server:
        command = [sys.executable, "-m", "dsv4_backend.cli", "gateway", "--url", server.grpc_address]
        command += ["--port", str(port), "--keys", str(keys)]
        command += ["--metrics-url", f"http://{server.metrics_address}/metrics"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            found = Real(f"http://127.0.0.1:{port}", server)
            try:
                wait_until(lambda: _is_up(found), "the gateway is ready")
                yield found
            finally:
                process.terminate()
                assert process.wait(40) == 0


def _is_up(real: Real) -> bool:
    try:
        return httpx2.get(f"{real.url}/v1/health/ready").status_code == 200
    except httpx2.TransportError:
        return False


def is_person(found: Any) -> bool:
    """Whether this JSON text or object fits PERSON."""
    person = json.loads(found) if isinstance(found, str) else found
    return set(person) == {"name", "age"} and len(person["name"]) <= 8 and 0 <= person["age"] <= 99
