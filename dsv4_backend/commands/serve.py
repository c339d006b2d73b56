"""Run the server until SIGTERM or Ctrl-C, then let running requests finish and stop."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dsv4_backend.commands.serving import DEFAULT_CHECKPOINT, NANO_NOTE, add_serving_arguments, say, server_options
from dsv4_backend.launcher import Server, Supervisor, news

EXAMPLE = json.dumps({"request": json.dumps({"messages": [{"role": "user", "content": "Hello"}]}), "stream": True})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_serving_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(f"--{name}-port", type=int, default=port, metavar="N",
                            help=f"{name} port; 0 = any free one (default {port})")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Serve. Returns 0 after a clean end. Raises: ConfigError, LaunchError."""
    ports = {"http": args.http_port, "grpc": args.grpc_port, "metrics": args.metrics_port}
    config, options = server_options(args, ports=ports, host=args.host)
    server = Server(options, on_log=say if args.verbose else _say_news)
    say(f"starting: {config.checkpoint}")
    supervisor = Supervisor(server, say=say, start_timeout_s=config.start_timeout_s)
    return supervisor.run(lambda: say(describe(server, Path(config.checkpoint))))


def describe(server: Server, checkpoint: Path) -> str:
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
    if checkpoint == DEFAULT_CHECKPOINT:
        lines.insert(1, f"  {NANO_NOTE}")
    return "\n".join(lines)


def _say_news(line: str) -> None:
    text = news(line)
    if text:
        say(f"  {text}")
