"""Run the server until SIGTERM or Ctrl-C, then let running requests finish and stop."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dsv4_backend.commands.serving import DEFAULT_CHECKPOINT, NANO_NOTE, add_serving_arguments, say, server_options
from dsv4_backend.launcher import Companion, Server, Supervisor, free_ports, news, require_free

EXAMPLE = json.dumps({"request": json.dumps({"messages": [{"role": "user", "content": "Hello"}]}), "stream": True})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_serving_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(f"--{name}-port", type=int, default=port, metavar="N",
                            help=f"{name} port; 0 = any free one (default {port})")  # fmt: skip
    parser.add_argument("--gateway-port", type=int, metavar="N",
                        help="also start the gateway (OpenAI's and Anthropic's APIs) on this port; 0 = any free one"
                        " (default: none; `dsv4 gateway` starts one by itself, with more options)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Serve. Returns 0 after a clean end. Raises: ConfigError, LaunchError."""
    ports = {"http": args.http_port, "grpc": args.grpc_port, "metrics": args.metrics_port}
    config, options = server_options(args, ports=ports, host=args.host)
    server = Server(options, on_log=say if args.verbose else _say_news)
    say(f"starting: {config.checkpoint}")
    gateway_port = None if args.gateway_port is None else _gateway_port(args, ports)
    gateway = None if gateway_port is None else make_gateway(server, config.checkpoint, args.host, gateway_port)
    supervisor = Supervisor(server, say=say, start_timeout_s=config.start_timeout_s, companion=gateway)
    return supervisor.run(lambda: say(describe(server, Path(config.checkpoint), gateway_port)))


def make_gateway(server: Server, checkpoint: str, host: str, port: int) -> Companion:
    """Return the gateway before a server, not yet started: the command that `dsv4 gateway` is."""

    def command() -> list[str]:
        metrics_url = f"http://{server.metrics_address}/metrics"
        named = {"url": server.grpc_address, "metrics-url": metrics_url, "checkpoint": checkpoint, "host": host}
        options = [part for name, value in named.items() for part in (f"--{name}", value)]
        return [sys.executable, "-m", "dsv4_backend.cli", "gateway", *options, "--port", str(port)]

    return Companion("gateway", (host, port), command, say)


def _gateway_port(args: argparse.Namespace, ports: dict[str, int]) -> int:
    """Return a port that is free. Raises: ConfigError, before a model is loaded."""
    if not args.gateway_port:
        return free_ports(1, host=args.host)[0]
    given = [(name, port) for name, port in ports.items() if port]
    require_free(args.host, [*given, ("gateway", args.gateway_port)])
    return int(args.gateway_port)


def describe(server: Server, checkpoint: Path, gateway_port: int | None = None) -> str:
    """Say where the server is reached and what to type."""
    lines = [
        f"serving {checkpoint}",
        f"  HTTP     http://{server.http_address}",
        f"  gRPC     {server.grpc_address}",
        f"  metrics  http://{server.metrics_address}/metrics",
        "try",
        f"  .venv/bin/dsv4 chat --url {server.grpc_address}",
        f"  curl -N http://{server.http_address}/v2/models/dsv4/generate_stream -d '{EXAMPLE}'",
        "Ctrl-C (or SIGTERM) drains and stops",
    ]
    if gateway_port is not None:
        lines.insert(1, f"  gateway  http://{server.local_host}:{gateway_port}/v1")
    if checkpoint == DEFAULT_CHECKPOINT:
        lines.insert(1, f"  {NANO_NOTE}")
    return "\n".join(lines)


def _say_news(line: str) -> None:
    text = news(line)
    if text:
        say(f"  {text}")
