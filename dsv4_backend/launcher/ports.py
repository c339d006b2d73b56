"""Ports: tritonserver reports a clash only after the models have loaded, so they are tried before it starts."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from dsv4_backend.errors import ConfigError

PORT_NAMES = ("http", "grpc", "metrics")


def is_free(host: str, port: int) -> bool:
    """Tell whether a listener could be opened now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_ports(count: int, *, host: str = "127.0.0.1") -> list[int]:
    """Return ports that nobody listens on, all different."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    held = [socket.socket(family, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for probe in held:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in held]
    finally:
        for probe in held:
            probe.close()


def require_free(host: str, ports: Iterable[tuple[str, int]]) -> None:
    """Raises: ConfigError listing every (name, port) that is taken or given twice."""
    problems, seen = [], set()
    for name, port in ports:
        if port in seen:
            problems.append(f"{name} port {port} is given twice.")
        elif not is_free(host, port):
            problems.append(f"{name} port {port} on {host} is in use. Choose another with --{name}-port, or 0 for any.")
        seen.add(port)
    if problems:
        raise ConfigError(" ".join(problems))
