"""Real servers over a model that echoes: starting, draining and dying without a language model."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dsv4_backend.launcher import Server, ServerOptions

REPOSITORY = Path(__file__).parent / "echo_repository"


def echo_options(**changes: object) -> ServerOptions:
    """Options of a server with the echo model alone."""
    values: dict[str, object] = {
        "repository": REPOSITORY,
        "models": ("echo",),
        "configured_models": ("echo",),
        "settings": {"prefix": "set"},
        "exit_timeout_s": 6.0,
    }
    return ServerOptions(**(values | changes))  # type: ignore[arg-type]


class EchoStream:
    """A running stream of responses over HTTP."""

    def __init__(self, server: Server, text: str, count: int, gap_s: float) -> None:
        self._connection = http.client.HTTPConnection(server.local_host, server.http_port, timeout=60)
        body = json.dumps({"text_input": text, "count": count, "gap_s": gap_s})
        self._connection.request("POST", "/v2/models/echo/generate_stream", body=body)
        self._response = self._connection.getresponse()

    def __iter__(self) -> Iterator[str]:
        """Yield the texts as they come."""
        for line in self._response:
            if line.startswith(b"data: "):
                yield str(json.loads(line[len(b"data: ") :])["text_output"])


def left_behind(server: Server) -> list[str]:
    """What a server should have removed: its shared memory, its run directory, its processes."""
    regions = [path.name for path in Path("/dev/shm").iterdir() if server.shm_prefix in path.name]
    folder = server.run_directory
    folders = [str(folder)] if folder and folder.exists() else []
    return regions + folders + [str(pid) for pid in pids_of(server.shm_prefix)]


def pids_of(prefix: str) -> list[int]:
    """Processes of one server."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if prefix.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def wait_until(holds: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    """Return whether the condition held before the time was over."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
