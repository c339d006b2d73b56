"""Answer OpenAI's and Anthropic's APIs over HTTP, in front of a running server."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from dsv4_backend.errors import ConfigError
from dsv4_client.gateway.serve import Listen, serve
from dsv4_client.gateway.settings import GatewaySettings, read_facts, read_keys
from dsv4_client.stream import DEFAULT_URL

DEFAULT_CHECKPOINT = Path(__file__).resolve().parents[3] / "build" / "nano" / "checkpoints" / "official"

NANO_NAME = "dsv4-nano"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    default = GatewaySettings(checkpoint=DEFAULT_CHECKPOINT)
    parser.add_argument("--url", default=DEFAULT_URL, help="gRPC address of the server (default %(default)s)")
    parser.add_argument("--metrics-url", default="http://127.0.0.1:8002/metrics", metavar="URL",
                        help="the server's metrics, shown with the gateway's own (default %(default)s)")  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT, metavar="DIR",
                        help="folder with the tokenizer.json and config.json that the server serves")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=8080, metavar="N", help="port (default %(default)s)")
    parser.add_argument("--model-name", action="append", metavar="NAME",
                        help="name that clients may ask for; the first is listed first, * accepts any")  # fmt: skip
    parser.add_argument("--facts", type=Path, metavar="FILE",
                        help="JSON answers by path that go before its own: {\"/v1/manifest\": …}")  # fmt: skip
    parser.add_argument("--listener-from", type=int, metavar="FD",
                        help="take the open port over this inherited Unix socket (nim-serve sets it)")  # fmt: skip
    parser.add_argument("--keys", type=Path, metavar="FILE", help="API keys, one a line; without it none is asked for")
    parser.add_argument("--cors-origin", action="append", metavar="ORIGIN", help="let pages of this origin call")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain (PEM)")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="private key (PEM)")
    parser.add_argument("--max-requests", type=int, default=default.max_requests, metavar="N",
                        help="requests at once (default %(default)s)")  # fmt: skip
    parser.add_argument("--max-body-bytes", type=int, default=default.max_body_bytes, metavar="N",
                        help="largest body (default %(default)s)")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=default.request_timeout_s, metavar="S",
                        help="longest answer in seconds (default %(default)s)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; running answers are finished first. Raises: ConfigError."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    listen = Listen(
        host=args.host,
        port=args.port,
        certificate=args.tls_cert,
        key=args.tls_key,
        listener_from=args.listener_from,
    )
    asyncio.run(serve(read_settings(args), listen))
    return 0


def read_settings(args: argparse.Namespace) -> GatewaySettings:
    """Return the settings that the arguments say. Raises: ConfigError."""
    if not (args.checkpoint / "tokenizer.json").is_file():
        raise ConfigError(f"there is no tokenizer.json in {args.checkpoint}. Name the served checkpoint's folder.")
    if bool(args.tls_cert) != bool(args.tls_key):
        raise ConfigError("TLS needs both --tls-cert and --tls-key, but only one was given. Give both or none.")
    return GatewaySettings(
        checkpoint=args.checkpoint,
        triton_url=args.url,
        triton_metrics_url=args.metrics_url,
        model_names=tuple(args.model_name or ((NANO_NAME,) if args.checkpoint == DEFAULT_CHECKPOINT else ())),
        facts=read_facts(args.facts) if args.facts else {},
        key_digests=read_keys(args.keys) if args.keys else (),
        cors_origins=tuple(args.cors_origin or ()),
        max_requests=args.max_requests,
        max_body_bytes=args.max_body_bytes,
        request_timeout_s=args.timeout,
    )
