"""nim-serve with the real server and the bundled model: live, ready, a chat, SIGTERM."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from dsv4_nim.catalog import all_profiles
from image_rig import PORTS, body_of, status, stream_chat, wait_for
from poll_rig import polling

from dsv4_backend.launcher import free_ports
from dsv4_backend.launcher.process import children_of

pytestmark = [pytest.mark.server, pytest.mark.ci]


@dataclass(frozen=True)
class Running:
    """A nim-serve of this checkout."""

    process: subprocess.Popen[str]
    api_port: int
    grpc_port: int


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    ports = free_ports(len(PORTS))
    settings = {name: str(port) for name, port in zip(PORTS, ports, strict=True)}
    settings |= {"NIM_CACHE_PATH": str(tmp_path), "NIM_SERVER_HOST": "127.0.0.1", "NIM_LOG_LEVEL": "INFO"}
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "dsv4_nim.main", "nim-serve"]
    process = subprocess.Popen(
        command, env={**os.environ, **settings, "PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True
    )
    yield Running(process, ports[0], ports[2])
    if process.poll() is None:
        process.kill()
        process.wait()


def memory_of(pid: int) -> int:
    """Largest resident bytes that a process and its descendants had, added up."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    peak = re.search(r"^VmHWM:\s+(\d+) kB", lines, re.MULTILINE)
    own = int(peak.group(1)) * 1024 if peak else 0
    return own + sum(memory_of(child) for child in children_of(pid))


def test_a_container_is_live_then_ready_chats_fits_its_profile_and_drains(running: Running) -> None:
    wait_for(lambda: status(running.api_port, "/v1/health/live") == 200, 30.0, "the live probe")
    assert status(running.api_port, "/v1/health/ready") == 503
    with polling(running.api_port, "/v1/health/live", "/v1/manifest", "/v1/metadata") as seen:
        wait_for(lambda: status(running.api_port, "/v1/health/ready") == 200, 120.0, "the ready probe")
        assert status(running.api_port, "/version") == 200  # a route of the gateway: it has the port
    assert (seen.failures, [len(seen.bodies[path]) for path in ("/v1/manifest", "/v1/metadata")]) == ([], [1, 1])
    assert "".join(stream_chat(running.grpc_port, "Hello")).strip()
    assert status(running.api_port, "/v1/metrics") == 200
    metadata = json.loads(body_of(running.api_port, "/v1/metadata"))
    assert metadata["selectedModelProfileId"] == all_profiles()[0].id
    assert memory_of(running.process.pid) < all_profiles()[0].needed_bytes
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0
