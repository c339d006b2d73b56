"""Command-line arguments that chat and generate share, and what they become."""

from __future__ import annotations

import argparse
from typing import cast

from dsv4_client.options import Options
from dsv4_client.stream import DEFAULT_URL, ENSEMBLE, Client

_NUMBERS: tuple[tuple[str, type, str], ...] = (
    ("max_tokens", int, "stop after that many tokens"),
    ("min_tokens", int, "do not stop before that many tokens"),
    ("temperature", float, "0 always takes the likeliest token"),
    ("top_p", float, "sample from the smallest set of tokens that has this probability"),
    ("top_k", int, "sample from this many likeliest tokens"),
    ("min_p", float, "leave out tokens below this share of the likeliest one's probability"),
    ("seed", int, "the same seed gives the same answer"),
    ("presence_penalty", float, "lower tokens that have occurred"),
    ("frequency_penalty", float, "lower tokens by how often they have occurred"),
    ("repetition_penalty", float, "divide the score of tokens that have occurred"),
    ("max_reasoning_tokens", int, "end the thinking after that many tokens"),
)


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where the server is and how the output looks."""
    parser.add_argument("--url", default=DEFAULT_URL, help="gRPC address of the server (default %(default)s)")
    parser.add_argument("--model", default=ENSEMBLE, help="name of the ensemble (default %(default)s)")
    parser.add_argument("--timeout", type=float, metavar="S", help="give up after so many seconds per answer")
    parser.add_argument("--json", action="store_true", help="print one JSON object per event")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how tokens are chosen and when generation ends."""
    for name, kind, text in _NUMBERS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=text)
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before this text (may be repeated)")


def sampling_options(args: argparse.Namespace) -> Options:
    """Return the sampling options that were given."""
    given = {name: getattr(args, name) for name, _, _ in _NUMBERS if getattr(args, name) is not None}
    if args.stop:
        given["stop_words"] = args.stop
    return cast(Options, given)


def connect(args: argparse.Namespace) -> Client:
    """Return a client of the server that was named."""
    return Client(args.url, model=args.model)
